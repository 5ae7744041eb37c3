"""Image folders: what Pillow stored comes back, pixel for pixel; everything else is refused by name."""

import pickle
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from isthmus.data import find_images, load, load_inputs
from isthmus.errors import DataError


def pixels(seed, height=6, width=8):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "photos"
    for seed, name in enumerate(["dog/b.png", "dog/a.bmp", "cat/deep/er/c.ppm", "cat/D.PNG"]):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(seed)).save(path)
    (root / "dog" / ".hidden.png").write_bytes(b"no image")
    (root / "dog" / "notes.txt").write_text("no image")
    (root / ".cache" / "x").mkdir(parents=True)
    (root / "readme.md").write_text("about")
    return root


ORDER = [3, 2, 1, 0]  # seeds of the images by class and path


def test_images_come_back(root):
    folder = find_images(root)
    assert (len(folder), folder.classes, folder.y.tolist()) == (4, ("cat", "dog"), [0, 0, 1, 1])
    assert folder.paths == ("cat/D.PNG", "cat/deep/er/c.ppm", "dog/a.bmp", "dog/b.png")
    assert repr(folder) == f"ImageFolder({root}: 4 images, 2 classes)"
    for (image, label), seed, y in zip(folder, ORDER, folder.y, strict=True):
        assert np.array_equal(image.numpy().transpose(1, 2, 0), pixels(seed))
        assert label == y
    data = load(root)
    assert (tuple(data.x.shape), str(data.x.dtype), data.classes) == (
        (4, 3, 6, 8),
        "torch.uint8",
        ("cat", "dog"),
    )
    assert torch.equal(data.x, torch.stack([image for image, _ in folder]))
    assert load_inputs(root, (), 144).shape == (4, 144)


def test_gray(root):
    gray = load(f"{root}:channels=gray")
    assert tuple(gray.x.shape) == (4, 1, 6, 8)
    assert np.array_equal(gray.x[3, 0].numpy(), np.array(Image.fromarray(pixels(0)).convert("L")))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK"])
def test_modes(tmp_path, mode):
    (tmp_path / "a").mkdir()
    name = "x.tif" if mode == "CMYK" else "x.png"
    image = Image.fromarray(pixels(0)).convert(mode)
    image.save(tmp_path / "a" / name)
    assert np.array_equal(
        find_images(tmp_path)[0][0].numpy(), np.array(image.convert("RGB")).transpose(2, 0, 1)
    )


def test_size_is_the_shorter_side_of_the_middle_square(root):
    data = load(f"{root}:size=6")
    assert np.array_equal(data.x[0].numpy().transpose(1, 2, 0), pixels(3)[:, 1:7])  # nothing to resize
    Image.fromarray(np.full((50, 11, 3), 77, np.uint8)).save(root / "dog" / "tall.png")
    data = load(f"{root}:size=16,channels=gray")
    assert tuple(data.x.shape) == (5, 1, 16, 16)
    assert (data.x[4] == 77).all()


def test_data_loaders_and_pickles(root):
    folder = pickle.loads(pickle.dumps(find_images(root, size=4)))
    batches = list(DataLoader(folder, batch_size=2, num_workers=1))
    assert torch.equal(torch.cat([x for x, _ in batches]), load(f"{root}:size=4").x)
    assert torch.cat([y for _, y in batches]).tolist() == [0, 0, 1, 1]


def test_images_of_several_sizes(root):
    Image.fromarray(pixels(9, 5, 7)).save(root / "dog" / "c.png")
    with pytest.raises(
        DataError, match=r"c\.png: 7 x 5 pixels, but cat/D\.PNG has 8 x 6; .*photos:size=6\.$"
    ):
        load(root)
    assert load(f"{root}:size=5").rows == 5


def bomb(path):
    header = struct.pack(">2I5B", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(9))), (b"IEND", b"")]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
            for name, body in chunks
        )
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_bytes(b""), "not a sound image"),
        (lambda path: path.write_bytes(b"no image"), "not a sound image"),
        (lambda path: path.write_bytes(path.read_bytes()[:-30]), "not a sound image"),
        (bomb, "refused as a decompression bomb"),
        (
            lambda path: Image.fromarray(np.zeros((6, 8), np.uint16)).save(path),
            "more than 8 bits per channel",
        ),
        (lambda path: (path.unlink(), path.symlink_to(path)), "not a sound image"),
    ],
    ids=["empty", "text", "truncated", "bomb", "16 bits", "link to itself"],
)
def test_broken_images(root, change, message):
    path = root / "dog" / "b.png"
    change(path)
    for read in (load, lambda root: find_images(root)[3]):
        with pytest.raises(DataError, match=message) as caught:
            read(root)
        assert str(caught.value).startswith(str(path))


def test_smaller_bombs_of_which_pillow_only_warns(root, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    with pytest.raises(DataError, match="refused as a decompression bomb"):
        load(root)


def test_too_many_images(root, monkeypatch):
    monkeypatch.setattr("isthmus.data.image_folder.MOST_BYTES", 500)
    with pytest.raises(DataError, match="4 images need 576 bytes"):
        load(root)
    assert load(f"{root}:size=2").rows == 4


def test_links_do_not_hang(root):
    (root / "cat" / "loop").symlink_to(root, target_is_directory=True)
    (root / "bird").symlink_to(root / "cat", target_is_directory=True)
    assert find_images(root).classes == ("bird", "cat", "dog")
    assert len(find_images(root)) == 6


def test_bad_folders(root, tmp_path):
    (root / "empty" / "er").mkdir(parents=True)
    with pytest.raises(DataError, match=r"photos/empty: this class folder holds no images \(\.bmp, .*add or"):
        load(root)
    with pytest.raises(DataError, match="there are no folders in it; expected one per class"):
        find_images(root / "dog")
    with pytest.raises(
        DataError, match=r"photos/dog: this folder is not understood; understood are folders of"
    ):
        load(root / "dog")
    with pytest.raises(DataError, match=r"none: cannot be read \(No such file"):
        find_images(tmp_path / "none")


def test_bad_options(root):
    for size in (0, -3, 100_000):
        with pytest.raises(DataError, match=f"size={size}; choose 1 to 16384 pixels"):
            load(f"{root}:size={size}")
    with pytest.raises(DataError, match="size=big is not an integer"):
        load(f"{root}:size=big")
    with pytest.raises(DataError, match="channels=cmyk is unknown; choose rgb or gray"):
        load(f"{root}:channels=cmyk")
    with pytest.raises(DataError, match="'split' is no option here; the options are: size=, channels=rgb"):
        load(f"{root}:split=test")
    with pytest.raises(DataError, match="data set for classification"):
        load(root, task="regression")
