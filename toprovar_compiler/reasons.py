"""What a session says of that which a policy leaves out and the model does not."""

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
CODES_NOT_FOUND = (
    "residual codes were not found: pruned tokens bypass the scale, codes are not zeroed (if the tokenizer "
    "is no part of the model, let it hold it: model.tokenizer = (tokenizer,))"
)
