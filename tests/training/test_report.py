import csv
from itertools import pairwise

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from spectral_density.training import (
    LowRankSaddleFreeNewton,
    NewtonCG,
    SecondOrderModel,
    TrainingReport,
)


def trainer(method=None):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([layers.Input((6,)), layers.Dense(5, "tanh"), layers.Dense(3)])
    wrapped = SecondOrderModel(model)
    wrapped.compile(
        method or LowRankSaddleFreeNewton(rank=4),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return wrapped


def data(n=40):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 6)).astype("float32")
    return x, (x[:, :3].argmax(1)).astype("int32")


def test_every_step_is_written_to_csv_tensorboard_and_history(tmp_path):
    x, y = data()
    path, logs = tmp_path / "run.csv", tmp_path / "logs"
    report = TrainingReport(path, tensorboard=logs)
    history = trainer().fit(
        x, y, batch_size=8, epochs=2, validation_data=(x, y), callbacks=[report], verbose=0
    )
    assert len(report.rows) == 10
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, 11))
    assert [int(row["epoch"]) for row in rows] == [0] * 5 + [1] * 5
    for name in ("loss", "gradient_norm", "num_products", "data_passes", "largest_eigenvalue"):
        values = [float(row[name]) for row in rows]
        assert np.isfinite(values).all()
        assert values == [row[name] for row in report.rows]
    assert rows[0]["val_accuracy"] == "nan"
    assert float(rows[4]["val_accuracy"]) == history.history["val_accuracy"][0]
    assert float(rows[9]["best_val_accuracy"]) == max(history.history["val_accuracy"])
    assert history.history["data_passes"] == [rows_["data_passes"] for rows_ in report.rows[4::5]]
    assert {"num_products", "rank", "step_length", "gradient_norm"} <= set(history.history)

    (events,) = logs.iterdir()
    found = {}
    for record in tf.data.TFRecordDataset(str(events)):
        for value in tf.compat.v1.Event.FromString(record.numpy()).summary.value:
            found.setdefault(value.tag, []).append(float(tf.make_ndarray(value.tensor)))
    np.testing.assert_allclose(
        found["training/data_passes"], [row["data_passes"] for row in report.rows], rtol=1e-6
    )


def test_the_table_has_a_row_for_each_pass(capsys):
    x, y = data()
    report = TrainingReport(table=True)
    trainer(LowRankSaddleFreeNewton(rank=2, oversampling=0, refresh=1000)).fit(
        x, y, batch_size=8, epochs=3, validation_data=(x, y), callbacks=[report], verbose=0
    )
    head, *rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert head[:3] == ["passes", "step", "loss"]
    passes = [float(row[0]) for row in rows]
    assert all(np.floor(after) > np.floor(before) for before, after in pairwise(passes[:-1]))
    assert int(rows[-1][1]) == 15
    assert all(row[-1] == "ACCEPTED" for row in rows)


def test_figures_that_a_method_does_not_have_are_nan(capsys):
    x, y = data(16)
    report = TrainingReport(table=True)
    trainer(NewtonCG()).fit(x, y, batch_size=16, callbacks=[report], verbose=0)
    assert np.isnan(report.rows[0]["largest_eigenvalue"])
    assert report.rows[0]["rank"] == 0
    assert " - " in capsys.readouterr().out


def test_other_models_have_no_steps_to_report():
    x, _ = data(8)
    model = keras.Sequential([layers.Input((6,)), layers.Dense(3)])
    model.compile("sgd", "mse")
    with pytest.raises(TypeError, match="SecondOrderModel"):
        model.fit(x, np.zeros((8, 3)), callbacks=[TrainingReport()], verbose=0)
