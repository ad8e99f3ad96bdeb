"""GenEval's rules, one by one, on detections made by hand."""

from __future__ import annotations

import pytest

from examples.emojivar.checker.decode import Detection
from examples.emojivar.checker.geneval import (
    Clause,
    Finding,
    Request,
    Thresholds,
    evaluate,
    intersection_over_union,
    keep,
    relative_position,
)

THRESHOLDS = Thresholds()


def found(kind: str, x: float = 0, y: float = 0, hue: str | None = None, score: float = 0.99) -> Detection:
    """An object of 40 x 20 pixels, centred at x, y."""
    return Detection(kind, hue, (x - 20, y - 10, x + 20, y + 10), score)


def judge(request: Request, *detections: Detection) -> Finding:
    return evaluate(keep(detections, request.counting, THRESHOLDS), request, THRESHOLDS)


def test_the_options_are_those_of_the_reference() -> None:
    assert Thresholds() == Thresholds(score=0.3, counting_score=0.9, objects=16, overlap=1.0, position=0.1)


def test_objects_count_strictly_above_the_threshold() -> None:
    sure, equal, unsure = (found("cat", score=score) for score in (0.31, 0.3, 0.29))
    assert keep([unsure, equal, sure], False, THRESHOLDS) == {"cat": [sure]}


def test_counting_has_a_higher_threshold() -> None:
    detections = [found("cat", score=score) for score in (0.91, 0.9, 0.5)]
    assert len(keep(detections, False, THRESHOLDS)["cat"]) == 3
    assert keep(detections, True, THRESHOLDS) == {"cat": detections[:1]}


def test_kept_objects_are_sorted_and_at_most_sixteen_of_a_kind() -> None:
    scores = [0.5 + index / 100 for index in range(20)]
    kept = keep([found("cat", score=s) for s in scores] + [found("dog")], False, THRESHOLDS)
    assert [detection.score for detection in kept["cat"]] == sorted(scores, reverse=True)[:16]
    assert len(kept["dog"]) == 1


def test_overlapping_objects_stay_unless_the_option_says_otherwise() -> None:
    twice = [found("cat", score=0.9), found("cat", x=1, score=0.8), found("cat", x=100, score=0.7)]
    assert len(keep(twice, False, THRESHOLDS)["cat"]) == 3
    thinned = keep(twice, False, Thresholds(overlap=0.5))["cat"]
    assert thinned == [twice[0], twice[2]]


def test_intersection_over_union_counts_the_edges() -> None:
    # one pixel shared of 4 + 4 - 1
    assert intersection_over_union((0, 0, 1, 1), (1, 1, 2, 2)) == pytest.approx(1 / 7)
    assert intersection_over_union((0, 0, 1, 1), (2, 0, 3, 1)) == 0


def test_present() -> None:
    request = Request((Clause("cat"),))
    assert judge(request, found("cat"), found("dog")).correct
    missing = judge(request, found("dog"))
    assert not missing.correct
    assert missing.reasons == ["expected cat>=1, found 0"]


def test_more_objects_than_asked_for_do_not_matter_outside_counting() -> None:
    assert judge(Request((Clause("cat"),)), found("cat"), found("cat", x=90)).correct


def test_two_objects_are_judged_each_for_itself() -> None:
    request = Request((Clause("cat"), Clause("dog")))
    assert judge(request, found("cat"), found("dog")).correct
    assert judge(request).reasons == ["expected cat>=1, found 0", "expected dog>=1, found 0"]


def counting(count: int) -> Request:
    return Request((Clause("cat", count),), (Clause("cat", count + 1),), counting=True)


def test_count() -> None:
    cats = [found("cat", x=90 * index) for index in range(4)]
    assert judge(counting(3), *cats[:3], found("dog")).correct
    assert judge(counting(3), *cats[:2]).reasons == ["expected cat>=3, found 2"]
    assert judge(counting(3), *cats).reasons == ["expected cat<4, found 4"]


def test_what_is_unsure_does_not_count() -> None:
    cats = [found("cat", x=90 * index) for index in range(2)]
    assert judge(counting(2), *cats, found("cat", x=200, score=0.85)).correct


def test_colour() -> None:
    request = Request((Clause("mug", colour="red"),))
    assert judge(request, found("mug", hue="red")).correct
    wrong = judge(request, found("mug", hue="blue"))
    assert wrong.reasons == ["expected red mug>=1, found 0 red; and 1 blue"]
    own = judge(request, found("mug"))
    assert own.reasons == ["expected red mug>=1, found 0 red; and 1 own colours"]
    assert judge(request, found("hat", hue="red")).reasons == ["expected mug>=1, found 0"]


def test_only_the_most_certain_object_is_asked_for_its_colour() -> None:
    request = Request((Clause("mug", colour="red"),))
    sure, unsure = found("mug", hue="blue", score=0.9), found("mug", x=90, hue="red", score=0.8)
    assert not judge(request, unsure, sure).correct
    assert judge(request, unsure._replace(score=0.95), sure).correct


def test_colours_of_several_are_counted() -> None:
    request = Request((Clause("mug", 2, colour="red"),))
    mugs = [found("mug", x=90 * index, hue=hue) for index, hue in enumerate(("red", "blue"))]
    assert judge(request, *mugs).reasons == ["expected red mug>=2, found 1 red; and 1 red, 1 blue"]
    assert judge(request, mugs[0], mugs[0]._replace(box=(90, 0, 130, 20))).correct


def test_attribution_does_not_accept_swapped_colours() -> None:
    request = Request((Clause("mug", colour="red"), Clause("hat", colour="blue")))
    assert judge(request, found("mug", hue="red"), found("hat", x=90, hue="blue")).correct
    swapped = judge(request, found("mug", hue="blue"), found("hat", x=90, hue="red"))
    assert len(swapped.reasons) == 2


def test_relative_position_of_clear_cases() -> None:
    target = found("dog")
    for x, y, relation in ((-90, 0, "left of"), (90, 0, "right of"), (0, -90, "above"), (0, 90, "below")):
        assert relative_position(found("cat", x, y), target, 0.1) == [relation]
    assert relative_position(found("cat", -90, -90), target, 0.1) == ["left of", "above"]


def test_a_small_shift_is_no_position() -> None:
    # both are 40 wide: 8 pixels are forgiven, and the shift must still be over half of the distance
    target = found("dog")
    assert relative_position(found("cat", 8), target, 0.1) == []
    assert relative_position(found("cat", 8.0005), target, 0.1) == []
    assert relative_position(found("cat", 15.9), target, 0.1) == []
    assert relative_position(found("cat", 16.1), target, 0.1) == ["right of"]
    assert relative_position(found("cat", 16.1), target, 0.2) == []
    assert relative_position(found("cat"), target, 0.1) == []


def test_a_flat_angle_has_one_relation() -> None:
    # (100 - 4) / 111.8 = 0.86 down; (50 - 8) / 111.8 = 0.38 sideways
    assert relative_position(found("cat", 50, 100), found("dog"), 0.1) == ["below"]


POSITION = Request((Clause("dog"), Clause("cat", position=("left of", 0))))


def test_position() -> None:
    assert judge(POSITION, found("cat", -90), found("dog")).correct
    assert judge(POSITION, found("cat", 90, 90), found("dog")).reasons == [
        "expected cat left of target, found right of and below target"
    ]
    assert judge(POSITION, found("cat", 1), found("dog")).reasons == [
        "expected cat left of target, found  target"
    ]


def test_position_without_its_target() -> None:
    assert judge(POSITION, found("cat", -90)).reasons == [
        "expected dog>=1, found 0",
        "no target for cat to be left of",
    ]
    assert judge(POSITION, found("dog")).reasons == ["expected cat>=1, found 0"]


def test_position_is_judged_on_the_most_certain_objects() -> None:
    right, left = found("cat", 90, score=0.9), found("cat", -90, score=0.8)
    assert not judge(POSITION, right, left, found("dog")).correct


def test_position_is_not_judged_where_the_colour_is_wrong() -> None:
    request = Request((Clause("dog"), Clause("hat", colour="red", position=("left of", 0))))
    reasons = judge(request, found("dog"), found("hat", 90, hue="blue")).reasons
    assert reasons == ["expected red hat>=1, found 0 red; and 1 blue"]
    assert judge(request, found("dog"), found("hat", 90, hue="red")).reasons == [
        "expected hat left of target, found right of target"
    ]
