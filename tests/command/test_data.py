import sys
from types import SimpleNamespace

import numpy as np
import pytest

from spectral_density.command.before_loading import split_name
from spectral_density.command.data import Examples, open_data, with_labels_for

IMAGES = np.random.default_rng(0).integers(0, 256, size=(10, 4, 4, 1), dtype=np.uint8)
LABELS = np.arange(10) % 3


def saved(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A directory to import modules from; they are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if (
            getattr(sys.modules[name], "__file__", None)
            and str(tmp_path) in sys.modules[name].__file__
        ):
            del sys.modules[name]


def test_an_npz_gives_the_same_batches_at_each_pass_the_last_one_short(tmp_path):
    x, w = np.random.default_rng(1).normal(size=(10, 3)), np.linspace(0, 1, 10)
    data = open_data(saved(tmp_path / "d.npz", x=x, y=LABELS, w=w), batch_size=4)
    for _ in range(2):
        batches = list(data())
        assert [len(batch[0]) for batch in batches] == [4, 4, 2]
        for position, whole in enumerate((x, LABELS, w)):
            np.testing.assert_array_equal(np.concatenate([b[position] for b in batches]), whole)
    assert data.notes == ()


def test_batches_have_128_examples_unless_asked_otherwise(tmp_path):
    data = open_data(saved(tmp_path / "d.npz", x=np.zeros((300, 2)), y=np.zeros(300)))
    assert [len(x) for x, _ in data()] == [128, 128, 44]


def test_uint8_images_are_scaled_and_it_says_so(tmp_path):
    source = saved(tmp_path / "d.npz", x=IMAGES, y=LABELS)
    data = open_data(source, batch_size=10)
    ((x, _),) = data()
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, IMAGES / 255.0, rtol=1e-6)
    assert "scaled to [0, 1]" in " ".join(data.notes)
    data = open_data(source, batch_size=10, scale=False)
    ((x, _),) = data()
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, IMAGES)
    assert "[0, 255]" in " ".join(data.notes)


@pytest.mark.parametrize("largest", [16, 127, 128, 255])
def test_uint8_images_that_never_come_near_255_are_a_doubt(tmp_path, largest):
    dark = np.minimum(IMAGES, largest)
    path = tmp_path / "dark.npz"
    np.savez(path, x=dark, y=np.zeros(10, int))
    notes = " ".join(open_data(str(path), batch_size=3).notes)
    assert ("doubtful: no pixel is above" in notes) == (largest < 128)
    if largest == 16:
        assert "no pixel is above 16, and they were divided by 255" in notes
    assert "doubtful" not in " ".join(open_data(str(path), scale=False).notes)


def test_numbers_that_are_no_uint8_images_stay_as_they_are(tmp_path):
    rows = IMAGES.reshape(10, -1)
    ((x, _),) = open_data(saved(tmp_path / "rows.npz", x=rows, y=LABELS))()
    np.testing.assert_array_equal(x, rows)
    floats = IMAGES.astype(np.float32)
    data = open_data(saved(tmp_path / "floats.npz", x=floats, y=LABELS))
    ((x, _),) = data()
    np.testing.assert_array_equal(x, floats)
    assert data.notes == ()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_train": IMAGES, "y_train": LABELS}, "holds x_train, y_train"),
        ({"x": IMAGES}, "named x and y"),
        ({"x": IMAGES, "y": LABELS[:4]}, "10 in x, 4 in y"),
        ({"x": IMAGES, "y": LABELS, "w": np.float32(1)}, "w must be an array"),
        ({"x": IMAGES[:0], "y": LABELS[:0]}, "no examples"),
        ({"x": IMAGES, "y": np.array(list("abcdefghij"))}, "y must hold numbers, and holds text"),
        ({"x": np.array([[1], [1, 2]], dtype=object), "y": LABELS[:2]}, "Python objects"),
    ],
)
def test_an_npz_that_will_not_do_is_named_with_its_fault(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=message) as error:
        open_data(saved(tmp_path / "d.npz", **arrays))
    assert "d.npz" in str(error.value)


def test_other_arrays_of_an_npz_are_ignored_and_it_says_so(tmp_path):
    data = open_data(saved(tmp_path / "d.npz", x=np.zeros((3, 2)), y=np.zeros(3), names=LABELS[:3]))
    assert "ignored: names" in " ".join(data.notes)


def test_a_file_that_is_missing_or_damaged_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.npz"):
        open_data(str(tmp_path / "missing.npz"))
    for name, content in (("a.npz", b"PK\x03\x04 damaged"), ("b.npz", b""), ("c.npz", b"text")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            open_data(str(tmp_path / name))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("tfds:mnist[train]", ("mnist", "train")),
        ("tfds:mnist[train[:512]]", ("mnist", "train[:512]")),
        ("tfds:mnist[train[:10%]+test]", ("mnist", "train[:10%]+test")),
        ("tfds:glue/sst2:1.0.0[test]", ("glue/sst2:1.0.0", "test")),
    ],
)
def test_a_tfds_name_comes_with_its_split(source, expected):
    assert split_name(source) == expected


@pytest.mark.parametrize(
    "source", ["tfds:", "tfds:mnist", "tfds:[train]", "tfds:mnist[]", "tfds:m[t"]
)
def test_a_tfds_name_without_a_split_is_refused_with_an_example(source):
    with pytest.raises(ValueError, match=r"tfds:mnist\[train\[:512\]\]"):
        open_data(source)


def test_a_package_that_one_dataset_needs_is_named(monkeypatch):
    def load(*arguments, **options):
        raise ModuleNotFoundError("No module named 'cv2'", name="cv2")

    monkeypatch.setitem(sys.modules, "tensorflow_datasets", SimpleNamespace(load=load))
    with pytest.raises(ModuleNotFoundError, match=r"to load tfds:mnist\[train\]: pip install cv2"):
        open_data("tfds:mnist[train]", download=True)


def test_a_missing_tensorflow_datasets_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ModuleNotFoundError, match='extra "examples"'):
        open_data("tfds:mnist[train]", download=True)


def test_a_function_of_the_current_directory_gives_the_dataset(here):
    (here / "my_data.py").write_text("def batches():\n    return [(1, 2)]\n")
    assert open_data("my_data:batches") == [(1, 2)]
    with pytest.raises(ValueError, match="--batch-size"):
        open_data("my_data:batches", batch_size=3)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("broken:batches", "importing the module 'broken' raised NameError"),
        ("nowhere:batches", "no module 'nowhere'"),
        ("lacking:batches", "importing the module 'lacking' raised ModuleNotFoundError: .*no_such"),
        ("faulty:missing", "has no 'missing'"),
        ("faulty:raises", r"faulty:raises\(\) raised KeyError"),
        ("faulty:number", "not a function"),
        ("faulty:nothing", "returned None"),
        ("faulty", "none of tfds"),
        ("faulty:", "module:function"),
    ],
)
def test_a_function_that_will_not_do_is_named_with_its_fault(here, source, message):
    (here / "broken.py").write_text("undefined\n")
    (here / "lacking.py").write_text("import no_such_package_of_mine\n")
    (here / "faulty.py").write_text(
        "number = 3\ndef raises():\n    return {}['key']\ndef nothing():\n    pass\n"
    )
    with pytest.raises(ValueError, match=message):
        open_data(source)


# Labels ------------------------------------------------------------------------------------------


def examples(y):
    return Examples("d", lambda: iter([(np.zeros((len(y), 2)), np.asarray(y), "w")]))


@pytest.mark.parametrize("y", [LABELS, LABELS[:, None], LABELS.astype(np.uint8)])
def test_class_numbers_become_one_hot_for_a_loss_that_takes_rows(y):
    data = with_labels_for(examples(y), "categorical_crossentropy", 3)
    ((_, found, w),) = data()
    np.testing.assert_array_equal(found, np.eye(3)[LABELS])
    assert found.dtype == np.float32
    assert w == "w"
    assert "one-hot" in " ".join(data.notes)


def test_one_hot_rows_become_class_numbers_for_a_sparse_loss():
    data = with_labels_for(examples(np.eye(3)[LABELS]), "sparse_categorical_crossentropy", 3)
    ((_, found, _),) = data()
    np.testing.assert_array_equal(found, LABELS)
    assert "class numbers" in " ".join(data.notes)


@pytest.mark.parametrize(
    ("y", "loss", "outputs"),
    [
        (LABELS, "sparse_categorical_crossentropy", 3),
        (np.eye(3)[LABELS], "categorical_crossentropy", 3),
        (LABELS, "mean_squared_error", 1),  # a regression on whole numbers
        (LABELS / 2, "mean_squared_error", 3),
        (LABELS, None, 3),  # a loss of the user's own
        (LABELS, "categorical_crossentropy", None),  # several outputs
    ],
)
def test_labels_that_fit_stay_as_they_are(y, loss, outputs):
    data = with_labels_for(examples(y), loss, outputs)
    ((_, found, _),) = data()
    np.testing.assert_array_equal(found, y)
    assert data.notes == ()


@pytest.mark.parametrize("loss", ["sparse_categorical_crossentropy", "categorical_crossentropy"])
@pytest.mark.parametrize("y", [[0, 1, 7], [-1, 0, 2]])
def test_a_label_that_is_no_class_of_the_model_is_refused(loss, y):
    with pytest.raises(ValueError, match=rf"from {min(y)} to {max(y)}, and the model has 3"):
        list(with_labels_for(examples(y), loss, 3)())
