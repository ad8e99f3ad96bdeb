"""The run time of one compilation: which scale and layer runs, what is kept, what was counted."""

from __future__ import annotations

import time
import warnings

import torch
from torch import Tensor

from toprovar_compiler import reasons
from toprovar_compiler.counters import Counters, Work
from toprovar_compiler.errors import OptionError, UnsupportedGraphError
from toprovar_compiler.generation import FlopsOf, Generation
from toprovar_compiler.launches import EachCall, Launcher
from toprovar_compiler.option_checks import check_start_scale
from toprovar_compiler.options import Options
from toprovar_compiler.policies import make_policy
from toprovar_compiler.policies.base import Decision, Dense, Outcome, Prune, Step
from toprovar_compiler.policies.error_bound import ErrorBound, error_bound
from toprovar_compiler.scale_graphs import ScaleGraphs


class Session:
    """Follows the generations of one model.

    A layer is known by the identity of its attention's weight, a scale by the layers being called again;
    when a generation starts, :meth:`Generation.starts_anew` tells.
    One thread at a time may run a session.
    """

    def __init__(self, name: str, options: Options, schedule: tuple[int, ...] | None) -> None:
        self.options, self.schedule = options, schedule
        self.counters = Counters(name)
        self.policy = make_policy(options, schedule)
        self.launcher: Launcher = ScaleGraphs() if options.records_cuda_graphs else EachCall()
        self.generation: Generation | None = None
        self.can_exit = False
        """Whether the model's loop asks :meth:`exits_before`."""
        self.started = 0.0
        self._warned = False
        self._begun = self._completed = 0

    def enter(self, layer_key: int, tokens: int, keys: int, rows: int) -> Step:
        """A block is called with ``tokens`` queries over ``keys`` keys; says which step that is."""
        current = self.generation
        again = current is not None and current.layers.get(layer_key) in current.layers_done
        if current is None or current.starts_anew(layer_key, tokens, keys - tokens):
            current, again = self._start_generation(), False
        elif again:
            self._end_scale(current)
            current.next_scale()
        layer = current.layers.setdefault(layer_key, len(current.layers))
        per_sample = 1 if current.halving else current.guided_rows(rows)
        if again:
            self._check_left_out(current)
        current.lengths[layer_key] = (tokens, keys - tokens)
        current.tokens, current.rows = tokens, 2 * rows if current.halving else rows
        if rows % per_sample:
            raise OptionError(
                f"guidance_rows requires a divisor of the batch rows, got {per_sample} for {rows} rows; "
                "give the number of rows that belong to one sample"
            )
        return Step(current.scale, layer, tokens, current.prefix, rows, per_sample)

    def decide(self, step: Step, stream: Tensor, unsupported: str | None) -> Decision:
        """What to run; ``unsupported`` is why this graph cannot be pruned, if so."""
        decision = self.policy.decide(step, stream)
        if isinstance(decision, Prune):
            if unsupported is not None:
                self.fall_back(unsupported)
                return Dense()
            if self.policy.exits_scales and self.generation is not None and not self.generation.sees_codes:
                self.fall_back(reasons.CODES_NOT_FOUND)
            return decision
        if decision.fallback is not None:
            # A graph that cannot be pruned gives no entropy either: its own reason is the root of it.
            self.fall_back(unsupported or decision.fallback)
        return Dense() if unsupported is not None else decision

    def leave(self, step: Step, outcome: Outcome, work: Work, flops_of: FlopsOf | None = None) -> None:
        """A block call is over; ``flops_of`` says what it would take at another scale."""
        current = self.generation
        assert current is not None, "leave without enter"
        current.layer_done(step, outcome.kept, self.policy.exits_scales)
        self.policy.observe(step, outcome)
        work = work.of_more_rows(2) if current.halving else work
        self.counters.record(step.scale, step.layer, step.tokens, work)
        current.device = outcome.stream_out.device
        if self.policy.may_exit and flops_of is not None:
            current.flops_of[step.layer] = flops_of

    def position(self) -> tuple[Generation, int] | None:
        """The running generation and the scale that it has reached; None where none runs."""
        current = self.generation
        return None if current is None or current.finished else (current, current.scale)

    def exits_before(self, scale: int) -> bool:
        """Whether the model's loop shall end before ``scale``; if so, the generation is over.

        Raises:
            OptionError, UnsupportedGraphError: see :meth:`finish`.
        """
        current = self.generation
        if current is None or current.finished or current.scale + 1 != scale:
            return False
        current.asked = scale
        if not self.policy.exits_before(scale):
            current.replaces_at = scale if self.policy.replaces_unconditional(scale) else None
            return False
        assert self.schedule is not None, "a model that states no schedule cannot exit"
        known = [self._count_skipped(current, s, self.schedule) for s in range(scale, len(self.schedule))]
        if not all(known):
            self.note("FLOPs of scales that were not run are unknown, and not counted as due")
        current.exited = True
        self.finish()
        return True

    def _check_left_out(self, current: Generation) -> None:
        """A scale begins after all that the policy leaves out, the whole of it or the unconditional rows."""
        replaced = self.policy.may_replace and self.policy.replaces_unconditional(current.scale)
        if self.policy.may_exit:
            asked = not self.can_exit or current.asked == current.scale
            if not asked and (replaced or self.policy.exits_before(current.scale)):
                self.fall_back(reasons.RAN_ALL_THE_SAME)
        elif replaced and current.runs_both_branches:
            if self.schedule is not None:
                self.fall_back(reasons.NOT_AS_STATED)
            elif not self.policy.replaces_unconditional(current.scale - 1):
                self.note(reasons.NOT_SEEN_BEFORE)

    def see_codes(self, codes: Tensor, vectors: Tensor | None = None) -> Tensor | None:
        """Codes [samples, N] are embedded as ``vectors`` [samples, N, C]; returns the mask of kept codes.

        The mask [samples, N] has 1 where a token was computed; None where all were, or where these are no
        codes of the running scale. Only the first look-up of a scale's codes is masked: what embeds the
        same number of indices later (decoding, say) is none of this scale.
        """
        current = self.generation
        if current is None or not current.has_codes(codes.shape):
            return None
        mask = current.take_exit_mask(codes.shape)
        if current.first_codes() and vectors is not None:
            seen = vectors if mask is None else vectors * mask[..., None].to(vectors.dtype)
            self.policy.observe_codes(codes, seen)
        return mask

    def kept_tokens(self) -> dict[int, Tensor]:
        """Per scale of the last generation, [samples, N]: the share of layers that computed each token."""
        return {} if self.generation is None else self.generation.shares_of_layers()

    def error_bound(self) -> ErrorBound | None:
        """The paper's bound for the last generation; None where its terms are not known.

        Reads back from the device: not for the time while a generation runs.
        """
        if self.generation is None or not self.counters.generations:
            return None
        return error_bound(self.generation.kept, self.policy.full_maps, self.options)

    def fall_back(self, reason: str) -> None:
        """Count that pruning was due and could not be done as asked.

        Raises:
            UnsupportedGraphError: under ``strict=True``.
        """
        if self.options.strict:
            raise UnsupportedGraphError(f"strict=True, and pruning was not possible: {reason}")
        self.note(reason)

    def note(self, reason: str) -> None:
        """Count a reason; the first one of a session is also a warning."""
        if not self.counters.fallbacks:
            warnings.warn(f"toprovar: {reason} (see toprovar_compiler.summary())", stacklevel=2)
        self.counters.fall_back(reason)

    @property
    def runs_uncompiled(self) -> bool:
        """Whether the first generation runs and is learned from."""
        return self._begun == 1 and self.policy.learning

    def graph_compiled(self) -> None:
        """A graph was compiled; after a whole generation that ran compiled, that is a recompile."""
        self.counters.graphs += 1
        self.counters.recompiles += self._completed > 0

    def abandon(self) -> None:
        """The running generation failed: what follows is none of its codes, and it proves nothing."""
        if self.generation is not None:
            self.generation.finished = True

    def finish(self) -> None:
        """The generation that ran is known to be whole: check what it proved.

        Raises:
            OptionError: ``start_scale`` lies outside the scales that ran.
            UnsupportedGraphError: nothing was pruned, under ``strict=True``.
        """
        self._conclude(certain=True)

    def settle(self) -> None:
        """Wait for the device, count what it has found out, and finish the generation if it is known to be
        whole: the stated schedule ran, and its codes were seen.

        Raises:
            OptionError, UnsupportedGraphError: as :meth:`finish`.
        """
        current = self.generation
        if current is None:
            return
        for reason in self._all_complaints(current):
            self.note(reason)
        whole = self.schedule is not None and current.scale + 1 == len(self.schedule)
        if whole and len(current.layers_done) == len(current.layers) and current.exit_mask is None:
            self.finish()

    def drop_complaints(self) -> None:
        """What policy and launcher know of what ran so far, and is not counted yet, never will be."""
        if self.generation is not None:
            self._all_complaints(self.generation)

    def _conclude(self, *, certain: bool) -> None:
        """``certain``: the generation is known to be whole; else it may have been broken off."""
        current = self.generation
        if current is None or current.finished:
            return
        current.finished = True
        self._end_scale(current)
        self._completed += not self.runs_uncompiled
        scales = current.scale + 1
        if current.exited and self.schedule is not None:
            scales = len(self.schedule)
        if self.schedule is not None and scales < len(self.schedule):
            self.note(
                f"{len(self.schedule) - scales} of {len(self.schedule)} scales did not run compiled: "
                "Dynamo may have reached its recompile limit, or the model stopped early"
            )
        try:
            check_start_scale(self.options, scales)
            self._check_effect()
        except (OptionError, UnsupportedGraphError) as error:
            if certain:
                raise
            self.note(str(error))

    def _start_generation(self) -> Generation:
        current = self.generation
        if current is not None and (self.schedule is None or current.scale + 1 == len(self.schedule)):
            self._conclude(certain=self.schedule is not None)
        self.policy.start_generation()
        self.launcher.start_generation()
        earlier = () if current is None else current.tokens_of_scales()
        self.generation = Generation(self.options.guidance_rows, earlier)
        self.counters.generations += 1
        self._begun += 1
        self.started = time.monotonic()
        if self.policy.may_exit and not self.can_exit:
            self.fall_back(reasons.CANNOT_EXIT)
        if self.options.records_cuda_graphs:
            # Else every block call counts as a new step, in which what the last one returned is overwritten.
            torch.compiler.cudagraph_mark_step_begin()
        return self.generation

    def _count_skipped(self, current: Generation, scale: int, schedule: tuple[int, ...]) -> bool:
        """All layers of a scale were due, and none is run; says whether their FLOPs are known."""
        tokens, earlier = schedule[scale], sum(schedule[:scale])
        current.skip(scale, tokens)
        flops = {layer: flops_of(tokens, earlier) for layer, flops_of in current.flops_of.items()}
        for layer in current.layers.values():
            work = Work(current.rows * tokens, 0, flops.get(layer) or 0, 0)
            self.counters.record(scale, layer, tokens, work)
        return None not in flops.values() and len(flops) == len(current.layers)

    def _end_scale(self, current: Generation) -> None:
        if current.exit_mask is not None and current.sees_codes:
            self.note("residual codes of a pruned scale were not seen: its pruned tokens were not zeroed")
        for reason in self._complaints():
            self.note(reason)

    def _complaints(self) -> list[str]:
        return [*self.policy.complaints(), *self.launcher.complaints()]

    def _all_complaints(self, current: Generation) -> list[str]:
        """Those too that its device has yet to find out."""
        if current.device is not None and current.device.type == "cuda":
            torch.cuda.synchronize(current.device)
        return self._complaints()

    def _check_effect(self) -> None:
        total = self.counters.total()
        if self.options.policy == "dense" or self._warned or not total.tokens_total:
            return
        if total.tokens_computed < total.tokens_total or self.policy.learning:
            return
        self._warned = True
        why = "; ".join(self.counters.fallbacks) or "no scale was due for pruning, or keep_ratio is 1"
        message = f"toprovar pruned nothing in a whole generation: {why}"
        if self.options.strict:
            raise UnsupportedGraphError(f"strict=True, and {message}")
        warnings.warn(message, stacklevel=2)
