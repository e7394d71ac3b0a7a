"""The questions to an operator, their answers, and what they say together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["passed", "doubtful", "failed", "skipped"]


@dataclass(frozen=True)
class Check:
    """One question to the operator and its answer."""

    name: str
    status: Status
    figure: float | None  # what was measured, relative unless the message says otherwise
    message: str
    noted: bool = False  # to be read although it passed

    def __str__(self) -> str:
        """Show the answer in a line."""
        figure = "" if self.figure is None else f" ({self.figure:.2g})"
        return f"{self.status:8} {self.name}{figure}: {self.message}"


@dataclass(frozen=True)
class PreflightReport:
    """What preflight found out about an operator."""

    operator: str  # its repr
    checks: tuple[Check, ...]
    unused_variables: tuple[str, ...]  # names of those that the loss does not depend on
    num_products: float  # what it cost, in products of one vector with the whole dataset

    @property
    def failed(self) -> tuple[Check, ...]:
        """Return the checks that make the operator unsound."""
        return tuple(check for check in self.checks if check.status == "failed")

    @property
    def doubtful(self) -> tuple[Check, ...]:
        """Return the checks that leave a doubt."""
        return tuple(check for check in self.checks if check.status == "doubtful")

    @property
    def verdict(self) -> Literal["sound", "doubtful", "unsound"]:
        """Return what the checks say together."""
        return "unsound" if self.failed else "doubtful" if self.doubtful else "sound"

    def __getitem__(self, name: str) -> Check:
        """Return the check of that name.

        Raises:
            KeyError: if there is none.
        """
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(f"no check is named {name!r}; there are {[c.name for c in self.checks]}.")

    def lines(self) -> list[str]:
        """Return a line for each check that has something to say, and one for all that passed."""
        quiet = [check.status == "passed" and not check.noted for check in self.checks]
        pairs = list(zip(self.checks, quiet, strict=True))
        passed = [check.name for check, is_quiet in pairs if is_quiet]
        lines = [str(check) for check, is_quiet in pairs if not is_quiet]
        return [*lines, f"{'passed':8} {', '.join(passed)}"] if passed else lines

    @property
    def details(self) -> str:
        """All checks with their figures, one a line."""
        return self._with_ends([str(check) for check in self.checks])

    def __str__(self) -> str:
        """Say what the checks found; see `details` for those that passed."""
        return self._with_ends(self.lines())

    def _with_ends(self, lines: list[str]) -> str:
        first = f"{self.operator}: {self.verdict}"
        last = f"cost: {self.num_products:.3g} products with one vector"
        return "\n  ".join([first, *lines, last])


class PreflightError(ValueError):
    """An operator is no fixed, symmetric, finite matrix, or a wrong one: see `report`."""

    def __init__(self, report: PreflightReport):
        """Say what failed."""
        self.report = report
        failed = "\n".join(f"- {check.message}" for check in report.failed)
        super().__init__(
            f"preflight found this matrix unsound:\n{failed}\n"
            "The results of an algorithm on it would mean nothing. check=False skips this test."
        )
