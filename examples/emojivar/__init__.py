"""EmojiVAR: a small trained VAR that paints scenes of emoji from prompts.

from examples.emojivar import load

model = load()
images = model.generate(["a red mug on a plain white background"], seed=0)  # [1, 3, 256, 256] in [0, 1]
"""

from .config import Config
from .model import EmojiVAR
from .prompts import Prompt, parse
from .tokenizer import Tokenizer
from .vocabulary import PromptError, Vocabulary
from .weights import WeightsError, load

__all__ = [
    "Config",
    "EmojiVAR",
    "Prompt",
    "PromptError",
    "Tokenizer",
    "Vocabulary",
    "WeightsError",
    "load",
    "parse",
]
