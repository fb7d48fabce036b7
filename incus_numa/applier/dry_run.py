"""Says what would be done. Used by `rebalance --dry-run`."""

from __future__ import annotations

from collections.abc import Sequence

from incus_numa.applier.protocol import Progress, Target
from incus_numa.model.plan import MovePages, Outcome, Step, StepResult


class DryRunApplier:
    """An Applier that changes nothing."""

    paces = False

    async def apply(self, target: Target, steps: Sequence[Step]) -> tuple[StepResult, ...]:
        """Every step, as something that would be done."""
        return tuple(StepResult(step=step, outcome=Outcome.WOULD_DO) for step in steps)

    async def apply_together(self, work: Sequence[tuple[Target, Sequence[Step]]]) -> tuple[StepResult, ...]:
        """Every step, as something that would be done."""
        return tuple(StepResult(step=step, outcome=Outcome.WOULD_DO) for _, steps in work for step in steps)

    async def release(self, target: Target, steps: Sequence[Step]) -> tuple[StepResult, ...]:
        """Every step, as something that would be done."""
        return await self.apply(target, steps)

    async def move_pages(self, target: Target, step: MovePages, progress: Progress) -> StepResult:
        """The step, as something that would be done."""
        return StepResult(step=step, outcome=Outcome.WOULD_DO)
