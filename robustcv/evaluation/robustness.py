"""Robust accuracy from a plan to a figure one may believe: plan, probes, and escalation where a probe is raised."""

from collections.abc import Sequence
from dataclasses import replace

from robustcv import processes, runtime, stopping
from robustcv.evaluation.job import Job, Planned
from robustcv.evaluation.reliability import Probed, probe
from robustcv.evaluation.replay import Replayable
from robustcv.evaluation.worst_case import WorstCase, merge, worst_case
from robustcv.records import AttackResult, Certified, Check, ImagePasses, OtherThreat, Passes, SeedRun


def measure(
    job: Job,
    plan: Sequence[Planned],
    *,
    eps: float,
    sweep: Sequence[float] = (),
    escalation: Sequence[Planned] = (),
    suspicious: bool = False,
    black_box: bool = False,
) -> tuple[WorstCase, tuple[Check, ...]]:
    """Run a plan, look for masked gradients, and run the escalation on what stands where they are found.

    Parameters
    ----------
    eps, sweep
        The headline, and further eps for the curve; probes and escalation run at the headline.
    escalation
        Attacks for the images left standing where a flag is raised; none: flags are only reported.
    suspicious
        Escalate whatever the probes say.
    black_box
        The classifier gives no gradients, so that there is nothing to probe.

    Returns
    -------
    tuple
        The worst case over everything that was run, and the flags.
    """
    outcome = worst_case(job, plan, eps=eps, sweep=sweep)
    if black_box or stopping.asked():
        return outcome, ()
    # agreed: a model with random answers must not divide the processes
    probed = processes.agreed(stopping.unless_asked(lambda: probe(job, outcome, plan), Probed((), outcome)))
    outcome = probed.outcome
    if escalation and (suspicious or any(flag.status == "raised" for flag in probed.flags)):
        more = worst_case(job, escalation, eps=eps, among=outcome.robust(eps), reason="escalation")
        outcome = merge(outcome, more)
        if len(outcome.sweep) > 1:
            runtime.note(
                f"only {outcome.norm} {eps:.4g} was attacked again by the longer plan, not the rest of the curve"
            )
    return outcome, probed.flags


def over_seeds(
    job: Job, plan: Sequence[Planned], outcome: WorstCase, seeds: int
) -> tuple[WorstCase, tuple[SeedRun, ...]]:
    """Run a plan again at the headline eps with other seeds; what any of them breaks is broken.

    Returns
    -------
    tuple
        The worst case over all seeds, and what each seed alone left standing.
    """
    if stopping.asked():
        return outcome, ()
    n, right = len(job.images), int(job.predictions.correct.sum())

    def left(results: Sequence[AttackResult], reason: str) -> int:
        return right - sum(each.broken for each in results if each.reason == reason and each.eps == outcome.headline)

    found = [SeedRun(seed=job.seed, count=left(outcome.results, "plan"), n=n)]
    for more in range(1, seeds):
        other = replace(job, seed=job.seed + more)
        again = worst_case(other, plan, eps=outcome.headline, reason="seed", tag=f"-{more}")
        if stopping.asked():
            return merge(outcome, again), ()
        found.append(SeedRun(seed=other.seed, count=left(again.results, "seed"), n=n))
        outcome = merge(outcome, again)
    return outcome, tuple(found) if seeds > 1 else ()


def passes(outcome: WorstCase, others: Sequence[Check | OtherThreat | Certified | Replayable], clean: int) -> Passes:
    """Add up forward and backward passes: attacks, checks, other threats, proofs, and those on unattacked images."""
    forward = sum(each.forward for each in outcome.results) + sum(each.forward for each in others)
    backward = sum(each.backward for each in outcome.results) + sum(each.backward for each in others)
    attacked = outcome.forwards[outcome.forwards > 0].double(), outcome.backwards[outcome.forwards > 0].double()
    if len(attacked[0]) == 0:
        return Passes(forward=forward + clean, backward=backward)
    per_image = ImagePasses(
        n=len(attacked[0]),
        median_forward=float(attacked[0].quantile(0.5)),
        median_backward=float(attacked[1].quantile(0.5)),
        most_forward=int(attacked[0].max()),
        most_backward=int(attacked[1].max()),
    )
    return Passes(forward=forward + clean, backward=backward, per_image=per_image)
