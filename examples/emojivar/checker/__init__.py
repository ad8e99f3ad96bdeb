"""A detector that reads pictures of emoji, and the composition score that it gives by GenEval's rules.

from examples.emojivar.checker import composition, load_checker, score_pictures

checker = load_checker(device="cpu")
scores = score_pictures(["a red mug on a plain white background"], images, checker)  # images [1, 3, 256, 256]
print(composition(scores)["overall"])
"""

from examples.emojivar.weights import WeightsError

from .checker import Checker
from .decode import Detection, Reading
from .files import load_checker, save_checker
from .scoring import Composition, PromptScore, composition, score_detections, score_pictures

__all__ = [
    "Checker",
    "Composition",
    "Detection",
    "PromptScore",
    "Reading",
    "WeightsError",
    "composition",
    "load_checker",
    "save_checker",
    "score_detections",
    "score_pictures",
]
