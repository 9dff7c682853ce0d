"""Images of rows: every form in which data brings them, where they stand in the prompt, and what is said of those that do not fit."""

from __future__ import annotations

import base64
import json
import textwrap
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from lightrft.data.chat import ChatSettings
from lightrft.data.images import ImageSettings
from lightrft.data.prompts import PromptSet, load_prompts
from lightrft.errors import DataError
from lightrft.testing.image_text import END_ID, IMAGE_ID, START_ID, VIDEO_ID, image_tokenizer, noise
from lightrft.types import Video, sources_of

pytest.importorskip("PIL", reason="images are Pillow's")
SHOWN = "<|vision_start|><|image_pad|><|vision_end|>"
READ = ImageSettings(key="images", videos_key="videos", token="<|image_pad|>")
FILMS = replace(READ, video_token="<|video_pad|>")
FILM = "<|vision_start|><|video_pad|><|vision_end|>"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png", "a.gif"):
        noise(len(name)).save(tmp_path / name)
    (tmp_path / "secret.png").symlink_to("/etc/passwd")
    (tmp_path / "loop.png").symlink_to("loop.png")
    return tmp_path


def load(folder: Path, *rows: Mapping[str, Any], images: ImageSettings = READ, **changes: Any) -> PromptSet:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"answer": "1", **row}) + "\n" for row in rows))
    return read(path, images=images, **changes)


def read(path: Path, **changes: Any) -> PromptSet:
    settings: dict[str, Any] = dict(
        tokenizer=image_tokenizer(), input_key="prompt", label_key="answer", prompt_template="{prompt}", apply_chat_template=True,
        prompt_max_len=64, chat=ChatSettings(), images=READ,
    )  # fmt: skip
    return load_prompts(str(path), **(settings | changes))


def names(images: tuple[Any, ...]) -> list[str]:
    return [Path(image).name for image in images]


def test_images_stand_where_the_text_says(folder: Path) -> None:
    one, two, none = load(
        folder,
        {"prompt": "a<image>b", "images": "a.png"},
        {"prompt": "<image>x<image>", "images": ["b.png", "a.png"]},
        {"prompt": "a<image>b"},
        special_tokens_in_prompts="text",
    ).prompts
    assert one.text == f"a{SHOWN}b" and names(one.images) == ["a.png"]
    assert two.text == f"{SHOWN}x{SHOWN}" and names(two.images) == ["b.png", "a.png"]
    assert none.text == "a<image>b" and none.images == (), "a row without images means what it says"
    assert [i for i in one.token_ids if i in (START_ID, IMAGE_ID, END_ID)] == [START_ID, IMAGE_ID, END_ID]
    assert "images" not in one.row and one.row["answer"] == "1" and one.where == f"{folder / 'rows.jsonl'}:1"


def test_without_a_mark_they_come_first(folder: Path) -> None:
    text, chat = load(
        folder,
        {"prompt": "ab", "images": ["a.png", "b.png"]},
        {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], "images": ["a.png"]},
    ).prompts
    assert text.text == f"{SHOWN}{SHOWN}ab" and names(text.images) == ["a.png", "b.png"]
    assert chat.text == f"s{SHOWN}u"


def test_messages_show_their_own_images_and_those_of_the_column(folder: Path) -> None:
    def asked(*parts: Any) -> list[Any]:
        return [{"role": "user", "content": list(parts)}]

    words = {"type": "text", "text": "w"}
    own, column, both = load(
        folder,
        {"prompt": asked({"type": "image", "image": "b.png"}, words)},
        {"prompt": asked(words, {"type": "image"}), "images": "a.png"},
        {"prompt": asked({"type": "image_url", "image_url": {"url": "b.png"}}, words, {"type": "image"}), "images": ["a.png"]},
    ).prompts
    assert (own.text, names(own.images)) == (f"{SHOWN}w", ["b.png"])
    assert (column.text, names(column.images)) == (f"w{SHOWN}", ["a.png"])
    assert (both.text, names(both.images)) == (f"{SHOWN}w{SHOWN}", ["b.png", "a.png"])


def test_templates_are_around_text_and_images(folder: Path) -> None:
    [chat] = load(folder, {"prompt": "a<image>", "images": "a.png"}, prompt_template="q {prompt} z").prompts
    assert chat.text == f"q a{SHOWN} z"
    [plain] = load(folder, {"prompt": "a<image>", "images": "a.png"}, prompt_template="q {prompt} z", apply_chat_template=False).prompts
    assert plain.text == "q a<|image_pad|> z" and plain.token_ids.count(IMAGE_ID) == 1


def test_bytes_base64_and_what_datasets_keeps(folder: Path) -> None:
    data = (folder / "a.png").read_bytes()
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    broken = "DATA:image/png;base64,\n" + "\n".join(textwrap.wrap(uri.partition(",")[2], 76))
    for one in (uri, broken):
        [encoded] = load(folder, {"prompt": "a", "images": [one]}).prompts
        assert encoded.images == (data,)
    rows = [{"prompt": "a", "answer": "1", "images": [{"bytes": data, "path": None}, {"bytes": None, "path": "b.png"}]}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "rows.parquet")
    [kept] = read(folder / "rows.parquet").prompts
    assert kept.images[0] == data and Path(kept.images[1]).name == "b.png"


def test_a_folder_of_datasets_keeps_its_images_encoded(folder: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="reads folders written by datasets.save_to_disk")
    features = datasets.Features(
        {"prompt": datasets.Value("string"), "answer": datasets.Value("string"), "images": datasets.List(datasets.Image())}
    )
    rows = {"prompt": ["a"], "answer": ["1"], "images": [[str(folder / "a.png")]]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(folder / "saved"))
    [prompt] = read(folder / "saved").prompts
    assert prompt.images == ((folder / "a.png").read_bytes(),)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"images": ["no.png"]}, "column 'images' names 'no.png', and there is no file"),
        ({"images": ["../a.png"]}, "names '../a.png', outside of '.*'; set images_folder to a folder that holds it"),
        ({"images": ["/etc/passwd"]}, "names '/etc/passwd', outside of"),
        ({"images": ["https://x.org/a.png"]}, "an address on the network; a run reads files only: download it"),
        ({"images": [5]}, "column 'images' holds 5, which names no image; give a path, a data URI"),
        ({"images": ["data:image/png;base64,?"]}, "a data URI that cannot be read"),
        ({"images": [{"caption": "x"}]}, "which names no image"),
        ({"images": [[[0.0, 1.0]]]}, r"column 'images' holds \[\[0.0, 1.0\]\], which names no image"),
        ({"images": ["secret.png"]}, "names 'secret.png', outside of '.*'; set images_folder to a folder that holds it"),
        ({"images": ["loop.png"]}, "names 'loop.png', which is no path: .*loop"),
        ({"images": ["a\0.png"]}, r"names 'a\\x00.png', which is no path: 'embedded null byte'"),
        ({"images": ["~nobody-here/a.png"]}, "names '~nobody-here/a.png', which is no path: "),
        ({"images": ["iVBORw0KGgo" * 500]}, "which is no path: .*; base64 begins with 'data:image/png;base64,'"),
        ({"prompt": "<image><image>", "images": ["a.png"]}, "the prompt shows more images than the 1 that the row has"),
        ({"prompt": "<image>", "images": ["a.png", "b.png"]}, "the prompt shows 1 of the row's 2 images; write <image> for each"),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}]}]}, "the prompt shows more images than the 0 that the row has"),
        ({"prompt": [{"role": "user", "content": [{"type": "audio"}]}]}, "a part of type 'audio'"),
        ({"prompt": [{"role": "user", "content": [{"type": "video"}]}]}, "the prompt shows more videos than the 0 that the row has"),
        ({"videos": "a.gif"}, r"the prompt has videos \(1\), and no model that reads videos was named"),
    ],
)
def test_what_does_not_fit_is_told_by_its_row(folder: Path, row: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        load(folder, {"prompt": "x"}, {"prompt": "a", **row})
    assert str(caught.value).startswith(f"{folder / 'rows.jsonl'}:2: ")


def test_another_folder_may_hold_them(folder: Path) -> None:
    (folder / "data").mkdir()
    row = {"prompt": "a", "images": ["a.png"]}
    with pytest.raises(DataError, match="there is no file"):
        load(folder / "data", row)
    [prompt] = load(folder / "data", row, images=ImageSettings(key="images", token="<|image_pad|>", folder=str(folder))).prompts
    assert names(prompt.images) == ["a.png"]


def test_a_model_or_a_template_that_shows_no_images(folder: Path) -> None:
    row = {"prompt": "a", "images": ["a.png"]}
    with pytest.raises(DataError, match=r"rows.jsonl:1: the prompt has images \(1\), and the model 'm' reads text alone"):
        load(folder, row, images=ImageSettings(key="images", unread="the model 'm' reads text alone"))
    tokenizer = image_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
    with pytest.raises(DataError, match=r"the prompt has 0 image tokens \(<\|image_pad\|>\) for 1 images"):
        load(folder, row, tokenizer=tokenizer)
    [ignored] = load(folder, row, images=ImageSettings(key="", token="<|image_pad|>")).prompts
    assert ignored.images == ()


def test_a_column_of_images_that_nothing_reads_is_told(folder: Path) -> None:
    found = load(folder, {"prompt": "a", "image": "a.png"})
    assert [name for name, _ in found.findings] == ["images_not_read"]
    assert "have a column 'image', which no setting names: no prompt has them; set --images_key image" in found.findings[0][1]


def test_videos_stand_where_the_text_says_or_come_first(folder: Path) -> None:
    def films(prompt: Any) -> list[list[str]]:
        return [list(names(sources_of(one))) for one in prompt.images]

    one, two, both, part = load(
        folder,
        {"prompt": "x<video>y", "videos": "a.gif"},
        {"prompt": "xy", "videos": ["a.gif", ["a.png", "b.png"]]},
        {"prompt": "<video>x<image>", "videos": [["b.png"]], "images": "a.png"},
        {"prompt": [{"role": "user", "content": [{"type": "video", "video": ["b.png", "a.png"]}, {"type": "text", "text": "w"}]}]},
        images=FILMS,
    ).prompts
    assert one.text == f"x{FILM}y" and films(one) == [["a.gif"]] and one.token_ids.count(VIDEO_ID) == 1
    assert two.text == f"{FILM}{FILM}xy" and films(two) == [["a.gif"], ["a.png", "b.png"]]
    assert both.text == f"{FILM}x{SHOWN}" and films(both) == [["b.png"], ["a.png"]]
    assert [isinstance(image, Video) for image in both.images] == [True, False]
    assert part.text == f"{FILM}w" and films(part) == [["b.png", "a.png"]]
    assert "videos" not in one.row
    [plain] = load(folder, {"prompt": "x<video>", "videos": "a.gif"}, images=FILMS, apply_chat_template=False).prompts
    assert plain.text == "x<|video_pad|>"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"videos": ["no.gif"]}, "column 'videos' names 'no.gif', and there is no file"),
        ({"videos": [["a.png", "no.png"]]}, "column 'videos', frame 1 names 'no.png', and there is no file"),
        ({"prompt": "<video><video>", "videos": ["a.gif"]}, "the prompt shows more videos than the 1 that the row has"),
        ({"prompt": "<video>", "videos": ["a.gif", "a.gif"]}, "the prompt shows 1 of the row's 2 videos; write <video> for each"),
        ({"videos": [5]}, "column 'videos' holds 5, which names no image"),
    ],
)
def test_videos_that_do_not_fit_are_told_with_their_row(folder: Path, row: Mapping[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=rf"rows.jsonl:1.*{words}"):
        load(folder, {"prompt": "a", **row}, images=FILMS)


def test_a_column_of_videos_that_no_setting_names_is_told(folder: Path) -> None:
    found = load(folder, {"prompt": "a", "video": "a.gif"}, images=FILMS)
    assert "have a column 'video', which no setting names: no prompt has them; set --videos_key video" in found.findings[0][1]
