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

    def __str__(self) -> str:
        """List all checks, one a line."""
        lines = [f"{self.operator}: {self.verdict}", *(f"  {check}" for check in self.checks)]
        return "\n".join([*lines, f"  cost: {self.num_products:.3g} products with one vector"])


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
