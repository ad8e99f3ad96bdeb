"""Why scales, or unconditional rows, were run that a policy leaves out."""

from __future__ import annotations

CANNOT_EXIT = (
    "leaving out scales or unconditional rows requires a model that states its schedule as patch_nums or "
    "scale_schedule and loops over it: all were run"
)
NOT_SEEN_BEFORE = (
    "guidance did not end in a generation: how many tokens a scale has is known from the generation before, "
    "where the model states no schedule"
)
NOT_AS_STATED = "guidance did not end at a scale that has other tokens than the stated schedule"
RAN_ALL_THE_SAME = (
    "what the policy leaves out was run: the model does not loop over the schedule that it states"
)
