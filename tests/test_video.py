import struct
import zlib
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image
from video_files import level, picture, with_matrix, write_video

from arvrm.sources.video import VideoError, is_video, probe, sample


def levels(path, start=0.0, end=None, fps=10.0, **options):
    return [level(frame.image) for frame in sample(path, start, end, fps, **options)]


@pytest.fixture(scope="module")
def frames():
    return [picture(number) for number in range(20)]


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.mov", "libx264"), ("a.mkv", "libx264"), ("a.webm", "libvpx-vp9"), ("a.gif", "gif")],
)
def test_every_container_gives_the_frames_of_a_stretch(tmp_path, frames, name, codec):
    path = write_video(tmp_path / name, frames, codec=codec)
    assert levels(path) == list(range(20))
    assert levels(path, 0.5, 1.2) == [5, 6, 7, 8, 9, 10, 11]
    assert probe(path).fps == pytest.approx(10) and probe(path).seconds == pytest.approx(2)


def test_a_stretch_far_into_the_video_is_the_same_after_a_seek(tmp_path):
    path = write_video(tmp_path / "long.mp4", [picture(number % 28) for number in range(60)])
    assert levels(path, 4.05, 4.65) == [number % 28 for number in range(40, 46)]


def test_variable_rate_is_sampled_by_what_is_on_the_screen(tmp_path, frames):
    path = write_video(tmp_path / "v.mp4", frames[:4], times=[0, 0.1, 0.7, 0.8])
    found = list(sample(path, 0, 0.9, 10))
    assert [level(frame.image) for frame in found] == [0, 1, 1, 1, 1, 1, 1, 2, 3]
    assert [frame.index for frame in found] == [0, 1, 1, 1, 1, 1, 1, 2, 3]
    assert np.allclose([frame.time for frame in found], np.arange(9) / 10)


def test_a_lower_rate_skips_frames_and_a_higher_one_repeats_them(tmp_path, frames):
    path = write_video(tmp_path / "a.mp4", frames)
    assert levels(path, fps=5) == list(range(0, 20, 2))
    assert levels(path, 0, 0.5, fps=20) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


@pytest.mark.parametrize(("degrees", "corner"), [(90, "lower left"), (180, "lower right"), (-90, "upper right")])
def test_rotation_metadata_turns_the_frames_upright(tmp_path, frames, degrees, corner):
    # Counterclockwise, as OpenCV and every player turn it.
    path = write_video(tmp_path / "r.mp4", frames[:2], rotation=degrees)
    image = next(sample(path)).image
    assert image.shape == ((64, 48, 3) if degrees % 180 else (48, 64, 3))
    corners = {"upper left": (2, 2), "upper right": (2, -3), "lower left": (-3, 2), "lower right": (-3, -3)}
    red = [name for name, (v, u) in corners.items() if image[v, u, 0] > 150 and image[v, u, 1] < 80]
    assert red == [corner]


CORNERS = {"upper left": (2, 2), "upper right": (2, -3), "lower left": (-3, 2), "lower right": (-3, -3)}


def red_corner(image):
    return [name for name, (v, u) in CORNERS.items() if image[v, u, 0] > 150 and image[v, u, 1] < 80]


@pytest.mark.parametrize(
    ("matrix", "corner", "shape"),
    [
        ((-1, 0, 0, 1), "upper right", (48, 64, 3)),  # mirrored left to right
        ((1, 0, 0, -1), "lower left", (48, 64, 3)),  # upside down, mirrored
        ((0, 1, 1, 0), "upper left", (64, 48, 3)),  # x and y exchanged
        ((0, -1, -1, 0), "lower right", (64, 48, 3)),
        ((0, 1, -1, 0), "upper right", (64, 48, 3)),  # a quarter turn clockwise
    ],
)
def test_mirrored_and_turned_videos_are_stored_as_players_show_them(tmp_path, frames, matrix, corner, shape):
    path = with_matrix(write_video(tmp_path / "m.mp4", frames[:2]), *matrix)
    image = next(sample(path)).image
    assert image.shape == shape and red_corner(image) == [corner]


def test_a_video_turned_by_no_quarter_is_refused(tmp_path, frames):
    path = with_matrix(write_video(tmp_path / "m.mp4", frames[:2]), 1, 1, -1, 1)
    with pytest.raises(VideoError, match="45 degrees"):
        next(sample(path))


@pytest.mark.parametrize(
    ("name", "codec", "shape", "size"),
    [("a.mp4", "libx264", Fraction(4, 3), (48, 85)), ("a.mkv", "libx264", Fraction(1, 2), (96, 64))],
)
def test_pixels_that_are_not_square_are_made_so(tmp_path, frames, name, codec, shape, size):
    path = write_video(tmp_path / name, frames[:2], codec=codec, pixel_shape=shape)
    assert next(sample(path)).image.shape[:2] == size


def test_wide_pixels_are_widened_before_the_picture_is_turned(tmp_path, frames):
    path = write_video(tmp_path / "a.mp4", frames[:2], pixel_shape=Fraction(2))
    assert next(sample(with_matrix(path, 0, 1, -1, 0))).image.shape[:2] == (128, 48)


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.webm", "libvpx-vp9"), ("a.mkv", "libx264")])
def test_without_a_start_a_stretch_begins_at_the_first_picture(tmp_path, frames, name, codec):
    path = write_video(tmp_path / name, frames, codec=codec, times=[0.8 + 0.1 * n for n in range(20)])
    assert levels(path) == list(range(20))


def test_a_late_matroska_file_that_is_cut_is_still_truncated(tmp_path, frames):
    times = [0.8 + 0.1 * n for n in range(20)]
    whole = write_video(tmp_path / "f.webm", frames, codec="libvpx-vp9", times=times).read_bytes()
    (tmp_path / "cut.webm").write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(VideoError, match=r"damaged|truncated"):
        levels(tmp_path / "cut.webm")


def test_the_rate_is_that_of_the_stretch_and_pauses_do_not_count(tmp_path):
    frames = [picture(number % 28) for number in range(41)]
    fast, slow = [n / 20 for n in range(20)], [1 + n / 5 for n in range(20)]
    path = write_video(tmp_path / "v.mp4", frames, times=[*fast, *slow, 20.0])
    assert probe(path, start=0, end=1).fps == pytest.approx(20, rel=0.01)
    assert probe(path, start=1, end=4).fps == pytest.approx(5, rel=0.01)
    assert probe(path, start=3, end=21).fps == pytest.approx(5, rel=0.01)  # then 15 s without a frame


@pytest.mark.parametrize("fps", [24, 25, 30, 50])
def test_an_even_rate_is_the_files_own_number(tmp_path, frames, fps):
    path = write_video(tmp_path / "v.mkv", frames, times=[n / fps for n in range(20)], fps=fps)
    assert probe(path, start=0, end=0.5).fps == fps


@pytest.mark.parametrize("suffix", [".3gp", ".mts", ".ts", ".mpg", ".flv", ".m2ts"])
def test_containers_of_cameras_are_videos(tmp_path, frames, suffix):
    path = write_video(tmp_path / f"a{suffix}", frames)
    assert is_video(path) and len(levels(path, fps=10)) > 5


def test_images_of_16_bits_keep_their_greys(tmp_path):
    grey = np.full((48, 64), 16 + 8 * 7, np.uint16) * 257
    Image.fromarray(grey).save(tmp_path / "0.png")
    Image.fromarray(grey).save(tmp_path / "1.png")
    assert levels(tmp_path, fps=4, sequence_fps=4.0) == [7, 7]


def test_a_picture_that_states_an_enormous_size_is_refused_before_it_is_read(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tmp_path / "0.png").write_bytes(png)
    with pytest.raises(VideoError, match=r"image 0\.png"):
        levels(tmp_path)


def test_only_a_numbered_series_without_videos_is_an_image_sequence(tmp_path, frames):
    for number in range(3):
        Image.fromarray(picture(number)).save(tmp_path / f"frame {number}.jpg")
    assert is_video(tmp_path)
    Image.fromarray(picture(0)).save(tmp_path / "cover.jpg")
    assert not is_video(tmp_path)
    (tmp_path / "cover.jpg").unlink()
    (tmp_path / "._frame 0.jpg").write_bytes(b"x")
    assert is_video(tmp_path) and levels(tmp_path, fps=1, sequence_fps=1.0) == [0, 1, 2]
    write_video(tmp_path / "frame.mp4", frames[:2])
    assert not is_video(tmp_path)


def test_a_truncated_video_says_where_it_ends_and_gives_what_is_before(tmp_path, frames):
    whole = write_video(tmp_path / "f.mp4", frames, options={"movflags": "faststart"}).read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole[: len(whole) * 2 // 3])
    assert levels(cut, 0, 0.5) == [0, 1, 2, 3, 4]
    with pytest.raises(VideoError, match=r"(damaged|truncated).* 0\.\d+ s"):
        levels(cut)


def test_a_truncated_matroska_file_is_told_by_its_stated_length(tmp_path, frames):
    whole = write_video(tmp_path / "f.webm", frames, codec="libvpx-vp9").read_bytes()
    cut = tmp_path / "cut.webm"
    cut.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(VideoError, match=r"damaged|truncated"):
        levels(cut)


def test_what_is_no_video_is_one_line(tmp_path, frames):
    (tmp_path / "junk.mp4").write_bytes(bytes(range(256)) * 20)
    (tmp_path / "empty.mp4").write_bytes(b"")
    for name, reason in {"junk.mp4": "opened", "empty.mp4": "opened", "none.mp4": "not there"}.items():
        with pytest.raises(VideoError, match=reason) as error:
            levels(tmp_path / name)
        assert "\n" not in str(error.value)


def test_damage_inside_a_video_is_noticed(tmp_path, frames):
    data = bytearray(write_video(tmp_path / "a.mp4", frames).read_bytes())
    at = data.index(b"mdat") + 400
    data[at : at + 500] = np.random.default_rng(0).integers(0, 256, 500, dtype=np.uint8).tobytes()
    (tmp_path / "c.mp4").write_bytes(data)
    with pytest.raises(VideoError, match="damaged"):
        levels(tmp_path / "c.mp4")


def test_a_stretch_past_the_end_is_cut_and_one_beyond_it_refused(tmp_path, frames):
    path = write_video(tmp_path / "a.mp4", frames)
    assert levels(path, 1.7, 9.0) == [17, 18, 19]
    with pytest.raises(VideoError, match=r"begins at 5\.00 s, but the video is over at 2\.00 s"):
        levels(path, 5.0, 6.0)


def test_a_folder_of_images_is_a_video_in_the_order_of_its_numbers(tmp_path):
    for number in (0, 1, 2, 10):
        Image.fromarray(picture(number)).save(tmp_path / f"bild ü {number}.png")
    assert is_video(tmp_path) and probe(tmp_path, 4.0).seconds == 1.0
    assert levels(tmp_path, fps=4, sequence_fps=4.0) == [0, 1, 2, 10]
    (tmp_path / "bild ü 3.png").write_bytes((tmp_path / "bild ü 1.png").read_bytes()[:60])
    with pytest.raises(VideoError, match="bild ü 3.png is damaged"):
        levels(tmp_path, fps=4, sequence_fps=4.0)
