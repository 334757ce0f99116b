"""The HTML report: what it holds, when it is written, and that a browser shows it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from chromium import drawn
from picture_pairs import configured, damage, draw, folder, go, pairs, written
from PIL import Image

from qedit.config.datasets import Dataset
from qedit.stages.pair import overview
from qedit.stages.pair.page import share_changed
from qedit.stages.pair.perceptual_hash import ALIKE_BITS, alike_groups, look_of


def smooth(seed: int, size: tuple[int, int] = (120, 90)) -> Image.Image:
    """A picture with structure: noise has none that survives being made small."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def page_of(configuration) -> Path:
    return folder(configuration) / "report.html"


def data_in(page: Path) -> dict:
    text = page.read_text(encoding="utf-8")
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])


def a_bit_of_everything():
    for number in range(4):
        for place, where in enumerate(("targets", "before")):
            Path(where).mkdir(exist_ok=True)
            smooth(10 * number + place).save(f"{where}/{number}.png")
    smooth(0).save("targets/again.jpg", quality=80)  # as 0.png
    smooth(61).save("before/again.png")
    edited = smooth(70)
    edited.save("before/touched.png")
    edited.paste((255, 0, 0), (0, 0, 30, 90))  # a quarter of it
    edited.save("targets/touched.png")
    draw("targets/strip.png", (90, 9))
    draw("before/strip.png", (90, 9))
    draw("targets/broken.png")
    draw("before/broken.png")
    damage("targets/broken.png")
    Path("targets/0.txt").write_text("</script><script>alert(1)</script>\nmake it blue")
    for name in ("1", "2", "3", "again", "touched", "strip", "broken"):
        Path(f"targets/{name}.txt").write_text(f"caption of {name}")
    configuration = configured(
        caption_strategy="textfile", crop=True, reference={"maximum_aspect_ratio": 5},
        maximum_aspect_ratio=5,
    )  # fmt: skip
    outcome = go(configuration, on_reject="skip")
    return configuration, outcome


def test_the_page_holds_what_the_tables_hold() -> None:
    configuration, outcome = a_bit_of_everything()
    assert outcome.facts["reports"] == [str(page_of(configuration))]
    data = data_in(page_of(configuration))
    assert (data["totals"]["samples"], data["totals"]["rejected"]) == (6, 2)
    found = {group["reason"]: group for group in data["rejected"]}
    assert {reason: group["count"] for reason, group in found.items()} == outcome.facts["rejected"]
    (strip, _before) = found["ratio_out_of_bounds"]["examples"]
    assert strip["thumbnail"].startswith("data:image/webp;base64,")
    assert found["unreadable"]["examples"][0]["thumbnail"] is None
    samples = {sample["name"]: sample for sample in data["samples"]}
    assert samples["0.png"]["captions"] == ["</script><script>alert(1)</script>", "make it blue"]
    assert samples["1.png"]["target"]["crop"] == [0.125, 0.0, 0.875, 1.0]
    assert samples["touched.png"]["edit"] == pytest.approx(0.25, abs=0.03)
    assert data["alike"] == [["0.png", "again.jpg"]]
    for name in ("0.png", "again.jpg"):
        assert "near_duplicate" in samples[name]["flags"]
    assert data["totals"]["captions"] == 7
    assert sum(row["count"] for row in data["lengths"]) == 7
    assert [one["count"] for one in data["buckets"]] == [6]


def test_the_page_needs_no_network() -> None:
    configuration, _ = a_bit_of_everything()
    text = page_of(configuration).read_text(encoding="utf-8")
    without_names = text.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|src=\"/|@import|url\(", without_names)


def test_it_is_written_only_when_the_tables_change() -> None:
    pairs(2)
    configuration = configured()
    go(configuration)
    before = written()
    go(configuration)
    go(configuration, paranoid=True)
    assert written() == before
    page = page_of(configuration)
    page.unlink()
    go(configuration)
    assert page.is_file()
    old = page.read_bytes()
    draw("targets/1.png", seed=55)
    go(configuration)
    assert page.read_bytes() != old


def test_of_a_missing_reference_the_target_is_shown() -> None:
    pairs(2)
    Path("before/1.jpg").unlink()
    go(configured(), on_reject="skip")
    (group,) = data_in(page_of(configured()))["rejected"]
    (row,) = group["examples"]
    assert (row["dataset"], row["path"]) == ("before", "1.png")
    assert row["thumbnail"].startswith("data:image/webp;base64,")


def test_where_it_goes_and_how_to_do_without() -> None:
    pairs(1)
    configuration = configured()
    outcome = go(configuration, no_report=True)
    assert outcome.facts["reports"] == []
    assert not list(Path().rglob("*.html"))
    go(configuration, report=Path("pages"))
    assert [str(path) for path in Path().rglob("*.html")] == ["pages/targets.html"]


def test_a_rejected_run_has_its_page_too() -> None:
    from qedit.cache.errors import NotComplete

    pairs(2)
    damage("targets/1.png")
    with pytest.raises(NotComplete):
        go(configured())
    assert data_in(page_of(configured()))["accepted"] is False


def test_few_of_many_are_shown_by_a_stated_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "SHOWN_SAMPLES", 6)
    monkeypatch.setattr(overview, "SHOWN_FLAGGED", 2)
    pairs(20)
    draw("targets/odd.gif", seed=7)
    draw("before/odd.png", seed=8)
    picture = Image.open("targets/3.png").convert("RGBA")
    picture.putalpha(100)
    picture.save("targets/3.png")
    go(configured())
    data = data_in(page_of(configured()))
    names = [sample["name"] for sample in data["samples"]]
    assert len(names) == 6
    assert "3.png" in names
    assert "6 of 21 pairs" in data["rule"]
    page_of(configured()).unlink()
    go(configured())
    assert [sample["name"] for sample in data_in(page_of(configured()))["samples"]] == names


SCRIPT = """
document.querySelectorAll("img").forEach(one => { one.loading = "eager"; });
const seen = () => [...document.querySelectorAll("#grid .card")].map(card => card.dataset.name);
const said = {all: seen(),  wide: document.documentElement.scrollWidth <= innerWidth,
  crops: document.querySelectorAll("#grid .crop").length,
  bars: document.querySelectorAll("svg .bar").length};
const search = document.getElementById("search");
search.value = "BLUE"; search.dispatchEvent(new Event("input")); said.blue = seen();
search.value = ""; search.dispatchEvent(new Event("input"));
const chip = document.querySelector('[data-flag="near_duplicate"]');
chip.click(); said.alike = seen(); chip.click(); said.again = seen();
const order = document.getElementById("order");
order.value = "least"; order.dispatchEvent(new Event("change")); said.least = seen()[0];
document.querySelector("#grid .large").click();
const dialog = document.getElementById("large");
const place = () => dialog.open && dialog.querySelector(".name").textContent.match(/(\\S+) of/)[1];
said.large = [place(), dialog.querySelectorAll("img").length];
dialog.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowLeft"})); said.large.push(place());
dialog.querySelector('[aria-label="close"]').click(); said.large.push(place());
search.value = "zzz"; search.dispatchEvent(new Event("input")); said.none = seen();
search.value = ""; search.dispatchEvent(new Event("input"));
setTimeout(() => {
  said.pictures = [...document.images].filter(one => one.naturalWidth).length;
  document.body.dataset.said = encodeURIComponent(JSON.stringify(said));
}, 500);
"""


@pytest.mark.parametrize("width", [1300, 360])
def test_a_browser_shows_it(width: int) -> None:
    from urllib.parse import unquote

    configuration, _ = a_bit_of_everything()
    dom = drawn(page_of(configuration), then=SCRIPT, width=width)
    said = json.loads(unquote(re.search(r'data-said="([^"]+)"', dom)[1]))
    assert said["all"] == ["0.png", "1.png", "2.png", "3.png", "again.jpg", "touched.png"]
    assert said["blue"] == ["0.png"]
    assert said["alike"] == ["0.png", "again.jpg"]
    assert said["large"] == ["1", 2, "6", False]  # opened, its pictures, one back, closed
    assert said["again"] == said["all"]
    assert said["least"] == "touched.png"
    assert said["none"] == []
    assert said["pictures"] >= 12
    assert said["wide"], "nothing sticks out to the side"
    assert (said["crops"], said["bars"] > 1) == (12, True)
    assert "alert(1)</script>" in dom or "&lt;/script&gt;" in dom


def are_alike(one: int, other: int) -> bool:
    return (one ^ other).bit_count() <= ALIKE_BITS


def test_looks_survive_saving_and_scaling_and_tell_pictures_apart(tmp_path: Path) -> None:
    looks = [look_of(smooth(seed)) for seed in range(40)]
    for seed in range(40):
        smooth(seed).save(tmp_path / "a.jpg", quality=60)
        with Image.open(tmp_path / "a.jpg") as again:
            assert are_alike(look_of(again), looks[seed])
        assert are_alike(look_of(smooth(seed, (240, 180))), looks[seed])

    def groups(*values: int) -> list[list[int]]:
        return alike_groups(np.array(values, np.uint64))

    assert groups(*looks) == []
    assert groups(*looks, looks[3] ^ 0b111, looks[3] ^ (1 << 40)) == [[3, 40, 41]]
    assert groups(looks[3], looks[3] ^ ((1 << ALIKE_BITS + 1) - 1)) == []
    assert groups(0, 0, 0) == []  # flat pictures say nothing


def test_groups_of_many_are_those_of_comparing_each_with_each() -> None:
    drawn = np.random.default_rng(5)
    looks = drawn.integers(1 << 60, 1 << 63, 160, dtype=np.uint64)
    for place in range(0, 120, 3):  # chains of pictures, each a little off the one before
        flips = drawn.integers(0, 64, 2).astype(np.uint64)
        looks[place + 1] = looks[place] ^ (np.uint64(1) << flips[0]) ^ (np.uint64(1) << flips[1])
        looks[place + 2] = looks[place + 1] if place % 2 else looks[place + 1] ^ np.uint64(7)
    chains: list[set[int]] = []
    for one in range(160):
        near = {two for two in range(160) if are_alike(int(looks[one]), int(looks[two]))}
        touched = [chain for chain in chains if chain & near]
        chains = [chain for chain in chains if not chain & near]
        chains.append(near.union(*touched))
    expected = sorted(sorted(chain) for chain in chains if len(chain) > 1)
    assert len(expected) == 40
    assert sorted(alike_groups(looks)) == expected


def test_many_copies_are_named_up_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "SHOWN_NAMES", 2)
    for number in range(5):
        for where in ("targets", "before"):
            Path(where).mkdir(exist_ok=True)
            smooth(3 if where == "targets" else number).save(f"{where}/{number}.png")
    go(configured())
    data = data_in(page_of(configured()))
    assert data["alike"] == [["0.png", "1.png", "and 3 more"]]
    assert data["totals"]["alike"] == 5


def test_words_and_sizes_are_counted() -> None:
    for number, size in enumerate(((40, 40), (40, 40), (80, 40))):
        draw(f"targets/{number}.png", size, seed=number)
        draw(f"before/{number}.png", size, seed=9)
    for number, text in enumerate(("one  two\tthree", "\n", "four\nwords here and more words")):
        Path(f"targets/{number}.txt").write_text(text)
    go(configured(caption_strategy="textfile", missing_caption="empty"))
    data = data_in(page_of(configured(caption_strategy="textfile", missing_caption="empty")))
    assert data["lengths"] == [{"label": "0 to 3", "count": 3}, {"label": "4 to 5", "count": 1}]
    assert "longest has 5. 1.3 captions" in data["captions"]
    assert [(one["label"], one["count"]) for one in data["buckets"]] == [
        ("64 \u00d7 64", 2),
        ("96 \u00d7 32", 1),
    ]


def test_a_mask_is_shown_beside_its_target() -> None:
    pairs(1, size=(60, 40))
    draw("masks/0.png", (60, 40))
    masks = Dataset(
        id="masks",
        dataset_type="conditioning",
        conditioning_type="mask",
        instance_data_dir="masks",
    )
    configuration = configured(conditioning_data=["before", "masks"], more=(masks,), crop=True)
    go(configuration)
    (sample,) = data_in(page_of(configuration))["samples"]
    assert sample["mask"]["thumbnail"].startswith("data:image/webp;base64,")
    assert sample["mask"]["crop"] == sample["target"]["crop"]


def test_the_share_that_changed() -> None:
    before = smooth(1, (200, 100))
    after = before.copy()
    assert share_changed(before, after) == 0
    after.paste((255, 255, 255), (0, 0, 100, 100))
    after.paste((0, 0, 0), (0, 0, 50, 100))
    assert share_changed(before, after) == pytest.approx(0.5, abs=0.06)
    assert share_changed(before, smooth(1, (100, 100))) is None
