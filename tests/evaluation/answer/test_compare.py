"""`splitwire compare`: the cheapest setting of each within a loss, what it says, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
import typer
from evaluations import evaluation, point
from typer.testing import CliRunner

from splitwire.codec.errors import UsageError
from splitwire.commands.compare import compare as command
from splitwire.evaluation.answer.compare import compare
from splitwire.evaluation.answer.results import Evaluation, Point, read_results
from splitwire.evaluation.answer.wording import budget_words, loss_words, parse_loss
from splitwire.evaluation.contenders import SPLITWIRE

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(command)

OURS_POINTS = (
    point(SPLITWIRE, "n2", 500, 0.02),
    point(SPLITWIRE, "n3", 700, 0.009),
    point(SPLITWIRE, "n4", 900, 0.002),
)
BIG_JPEG = (point("JPEG", "q 70", 1200, 0.03, sends="image"), point("JPEG", "q 90", 2100, 0.004, sends="image"))
SMALL_JPEG = (point("JPEG", "q 30", 400, 0.03, sends="image"), point("JPEG", "q 50", 600, 0.004, 0.2, "image"))
ZSTD = (point("zstd 3", "n3", 910, 0.009), point("zstd 3", "n4", 1100, 0.002))
PICTURE_BETTER = "Sending the picture is the better choice"


def of(*points: Point, **changes: object) -> Evaluation:
    return evaluation(points=points, **changes)


def save(e: Evaluation, folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "results.json").write_bytes(msgspec.json.encode(e))
    return folder


def invoke(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_each_family_by_its_cheapest_setting_within_the_loss():
    c = compare(of(*ZSTD, *BIG_JPEG, *OURS_POINTS, point("HEVC of features", "QP 40", 300, 0.05)))
    assert c.max_loss == 0.01
    assert [(s.family, s.setting, s.bytes) for s in c.standings] == [
        (SPLITWIRE, "n3", 700), ("zstd 3", "n3", 910), ("JPEG", "q 90", 2100)
    ]  # fmt: skip
    assert [s.ratio for s in c.standings] == [1.0, 1.3, 3.0]
    assert [s.certain for s in c.standings] == [False, False, True]  # 0.009 ± 0.004, 0.004 ± 0.004
    assert [(m.family, m.setting, m.loss.value) for m in c.missed] == [("HEVC of features", "QP 40", 0.05)]


def test_the_upper_bound_counts_where_it_is_asked_for(tmp_path: Path):
    e = of(*ZSTD, *BIG_JPEG, *OURS_POINTS, point("HEVC of features", "QP 40", 300, 0.009))
    c = compare(e, upper=True)
    assert [(s.family, s.setting) for s in c.standings] == [(SPLITWIRE, "n4"), ("zstd 3", "n4"), ("JPEG", "q 90")]
    assert all(s.certain for s in c.standings)
    assert [(m.family, m.loss.value) for m in c.missed] == [("HEVC of features", 0.009)]
    assert "may be as high as" not in " ".join(c.verdict)
    folder = save(e, tmp_path / "upper")
    assert json.loads(invoke(folder, "--upper", "--json").stdout)["standings"][0]["setting"] == "n4"
    assert "up to the upper bound" in " ".join(invoke(folder, "--upper").stdout.split())


def test_the_budget_counts():
    e = of(*OURS_POINTS, *BIG_JPEG, max_loss=0.002)
    assert [s.setting for s in compare(e).standings] == ["n4"]
    assert [s.setting for s in compare(e, 0.05).standings] == ["n2", "q 70"]
    assert compare(e, 0.05).standings[0].certain


def test_exactly_the_budget_is_within_it():
    loss = 0.93 - 0.92
    assert loss > 0.01
    assert compare(of(point(SPLITWIRE, "n2", 100, loss))).of(SPLITWIRE) is not None


def test_a_smaller_picture_is_said_to_be_the_better_choice():
    words = " ".join(compare(of(*OURS_POINTS, *SMALL_JPEG, *ZSTD)).verdict)
    assert f"{PICTURE_BETTER} here: JPEG q 50 needs 600 bytes where splitwire n3 needs 700" in words
    assert "spared the front (3.42 ms)" in words


def test_a_larger_picture_is_not():
    words = " ".join(compare(of(*OURS_POINTS, *BIG_JPEG, *ZSTD)).verdict)
    assert PICTURE_BETTER not in words
    assert (
        "splitwire n3 needs 700 bytes; the smallest picture within the same loss is 3.00× as large (JPEG q 90" in words
    )
    assert "The next way to send features (zstd 3 n3) needs 1.30× the bytes" in words
    assert "may be as high as 1.30 %" in words
    assert (
        "By that bound, which --max-loss goes by, the cheapest are splitwire n4 with 900 bytes; zstd 3 n4 with" in words
    )


def test_pictures_that_lose_too_much_are_not_recommended():
    words = " ".join(compare(of(*OURS_POINTS, SMALL_JPEG[0])).verdict)
    assert PICTURE_BETTER not in words
    assert "No picture codec stays within a loss of 1 %; the closest, JPEG q 30, loses 3.00 %" in words


def test_smaller_features_of_another_are_said():
    words = " ".join(compare(of(*OURS_POINTS, point("zstd 19", "n3", 650, 0.009, 2.5))).verdict)
    assert "zstd 19 n3 needs fewer bytes than splitwire: 650 against 700, and takes 2.5 ms" in words


def test_where_splitwire_does_not_qualify():
    c = compare(of(point(SPLITWIRE, "n2", 500, 0.02), *BIG_JPEG))
    words = " ".join(c.verdict)
    assert "No operating point of splitwire stays within a loss of 1 %: the best, n2, loses 2.00 %" in words
    assert PICTURE_BETTER in words
    assert [s.ratio for s in c.standings] == [None]
    features = compare(of(point(SPLITWIRE, "n2", 500, 0.02), *BIG_JPEG, point("int8", "", 900, 0.0)))
    assert PICTURE_BETTER not in " ".join(features.verdict)
    assert "int8 needs the fewest bytes within the budget, 900" in features.verdict[1]


def test_text_fits_and_names_everything(tmp_path):
    folder = save(evaluation(), tmp_path / "pair" / "evaluation")
    result = invoke(tmp_path / "pair", "--max-loss", "1%")
    assert result.exit_code == 0, result.output
    assert result.stdout == invoke(folder).stdout
    lines = result.stdout.splitlines()
    assert lines[0] == "small_resnet cut after layer2.1.relu: whole network 91.50 % Top-1 accuracy, 2,000 images"
    table = [line for line in lines if "e-" not in line and line.startswith(" ")]
    assert max(len(line.rstrip()) for line in table) <= 100
    shown = [line.split("  ")[0].strip() for line in table if "%" in line]
    assert shown[0] == SPLITWIRE
    assert "JPEG (picture)" in shown
    assert len(shown) == len(compare(evaluation()).standings)
    assert "…" not in result.stdout  # nothing is cut off
    missed = invoke(folder, "--max-loss", "0.001").stdout
    assert "not within 0.1 %: JPEG; loses least at q 95, 0.80 %" in missed


def test_json(tmp_path):
    folder = save(of(*OURS_POINTS, *BIG_JPEG), tmp_path / "evaluation")
    result = invoke(folder, "--json", "--max-loss", "0.02")
    document = json.loads(result.stdout)
    assert document["max_loss"] == 0.02
    assert [(s["family"], s["setting"], s["ratio"]) for s in document["standings"]] == [
        (SPLITWIRE, "n2", 1.0), ("JPEG", "q 90", 4.2)
    ]  # fmt: skip
    assert document["verdict"] == list(compare(of(*OURS_POINTS, *BIG_JPEG), 0.02).verdict)


@pytest.mark.parametrize("text", ["", "one", "-1%", "nan", "inf"])
def test_what_is_no_loss(text):
    with pytest.raises(UsageError, match=r"1% or 0\.01"):
        parse_loss(text)


def test_losses():
    assert (parse_loss("1%"), parse_loss(" 0.5 % "), parse_loss("0.02")) == (0.01, 0.005, 0.02)
    assert (budget_words("top1", 0.01), budget_words("top1", 0.005)) == ("1 %", "0.5 %")
    assert (loss_words("top1", -1e-9), loss_words("psnr", 1.25)) == ("0.00 %", "1.25")


def test_a_loss_of_one_is_a_mistake_for_a_share_only():
    with pytest.raises(UsageError, match=r"1% or 0\.01"):
        compare(of(*OURS_POINTS), 1.0)
    e = of(*OURS_POINTS, figure="psnr", whole={"psnr": evaluation().whole["top1"]})
    assert len(compare(e, 1.0).standings) == 1


def test_no_evaluation(tmp_path):
    result = invoke(tmp_path)
    assert isinstance(result.exception, UsageError)
    assert "splitwire evaluate" in str(result.exception)


def test_what_is_no_folder(tmp_path):
    """Said as it is, and not that it holds nothing."""
    file = tmp_path / "results.json"
    file.write_text("{}")
    for path, words in (
        (tmp_path / "none", "none: there is no such folder"),
        (file, "json is a file; name"),
    ):
        with pytest.raises(UsageError, match=words):
            raise invoke(path).exception
        with pytest.raises(UsageError):
            read_results(path)
    with pytest.raises(UsageError, match="none: there is no such folder"):
        read_results(tmp_path / "none")
