"""When a callback measures: after every n-th epoch, or every n-th step."""

from __future__ import annotations

from dataclasses import dataclass

from spectral_density.linalg.arguments import integer


@dataclass(frozen=True)
class Schedule:
    """When to measure: after every n-th epoch or every n-th step, 0 for never."""

    epochs: int
    steps: int

    @classmethod
    def checked(cls, every_epochs: int | None, every_steps: int | None) -> Schedule:
        """Return the schedule of two arguments, of which one at most is given.

        Raises:
            ValueError: if both are given, or one is less than 1.
        """
        if every_epochs is not None and every_steps is not None:
            raise ValueError("pass every_epochs or every_steps, not both.")
        if every_steps is not None:
            return cls(0, integer(every_steps, "every_steps", 1))
        return cls(1 if every_epochs is None else integer(every_epochs, "every_epochs", 1), 0)

    def is_due_after_epoch(self, epoch: int) -> bool:
        """Tell whether to measure after an epoch, counted from 0."""
        return bool(self.epochs) and (epoch + 1) % self.epochs == 0

    def is_due_between(self, before: int, now: int) -> bool:
        """Tell whether to measure after the steps from one number of steps to another."""
        return bool(self.steps) and now // self.steps > before // self.steps
