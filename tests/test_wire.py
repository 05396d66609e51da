"""Messages from anybody: what is read, and what is refused before anything is made of it."""

import io
import tracemalloc

import msgpack
import numpy as np
import pytest
from PIL import Image

from arvrm.remote.wire import WireError, packed, unpacked


@pytest.mark.parametrize("spelling", ["bytes", "text"])
def test_what_is_sent_is_received(spelling):
    sent = {
        "image": np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
        "nested": {"state": np.array([0.1, -2.5]), "flag": np.array(True)},
        "empty": np.zeros((0, 7), np.float32),
        "words": ["a", 1, 2.5, None, True],
    }
    got = unpacked(packed(sent, spelling))
    assert got["words"] == sent["words"] and got["empty"].shape == (0, 7)
    for one, other in ((got["image"], sent["image"]), (got["nested"]["state"], sent["nested"]["state"])):
        assert one.dtype == other.dtype and np.array_equal(one, other)
    assert got["nested"]["flag"].dtype == bool


def marked(**values):
    return msgpack.packb({"x": {"__ndarray__": True, "data": b"12345678", "dtype": "<f8", "shape": [1]} | values})


def png(width, height, **values):
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    said = {"__image__": True, "format": "png", "data": file.getvalue(), "shape": [height, width, 3]}
    return msgpack.packb({"x": said | values})


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no msgpack"),
        (b"\xc1", "no msgpack"),
        (b"\x91" * 5000, "no msgpack"),
        (b"\xdd\xff\xff\xff\xff", "exceeds"),
        (b"\xc6\xff\xff\xff\xff", "no msgpack"),
        (msgpack.packb([[[] for _ in range(1000)] for _ in range(3)]), "lists and mappings"),
        (msgpack.packb(msgpack.ExtType(4, b"")), "extension"),
        (msgpack.packb({"__ndarray__": True}), "shape"),
        (marked(dtype="O"), "dtype 'O'"),
        (marked(dtype="|V8"), "dtype"),
        (marked(dtype="i4,i4"), "dtype"),
        (marked(dtype="(2147483647,)f8"), "dtype"),
        (marked(dtype="<c8"), "dtype"),
        (marked(dtype="<f8", shape=[2**39]), "8 bytes"),
        (marked(shape=[2**62, 4]), "whole numbers"),
        (marked(shape=[-1]), "whole numbers"),
        (marked(shape=[1] * 9), "up to 8"),
        (marked(shape=[0.5]), "whole numbers"),
        (marked(data="text"), "without bytes"),
        (msgpack.packb({"__npgeneric__": True, "data": [1], "dtype": "<i4"}), "that is a list"),
        (msgpack.packb({"__npgeneric__": True, "data": 300, "dtype": "|u1"}), "does not fit"),
        (png(8, 8, shape=[4, 4, 3]), "said to have"),
        (png(8, 8, shape=[2**20, 2**20, 3]), "images of more"),
        (png(8, 8, format="gif"), "format 'gif'"),
        (png(8, 8, data=b"no image"), "cannot be read"),
    ],
)
def test_what_nobody_may_send_is_refused_in_one_line(data, said):
    with pytest.raises(WireError, match=said) as error:
        unpacked(data)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_nothing_is_allocated_for_what_is_refused():
    bomb = png(6000, 6000)  # 105 kB that would be 108 MB
    assert len(bomb) < 500_000
    tracemalloc.start()
    for data in (bomb, b"\xdd\x7f\xff\xff\xff" + b"\xc0" * 1000, marked(shape=[2**39])):
        with pytest.raises(WireError):
            unpacked(data)
    assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    tracemalloc.stop()


def test_a_message_has_a_largest_size():
    with pytest.raises(WireError, match="at most 1000"):
        unpacked(packed({"x": np.zeros(1000, np.uint8)}), most=1000)


def test_objects_are_never_sent():
    with pytest.raises(TypeError, match="cannot be sent"):
        packed({"x": np.array([object()])})


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_compressed_images_of_vla_eval_are_read(form):
    pixels = np.full((6, 4, 3), 100, np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    said = {"__image__": True, "format": form.lower(), "data": file.getvalue(), "shape": [6, 4, 3]}
    got = unpacked(msgpack.packb({"x": said}))["x"]
    assert got.shape == (6, 4, 3) and np.abs(got.astype(int) - pixels).max() <= 2
