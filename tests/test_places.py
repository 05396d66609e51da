"""Places: the hand at the moments of an instruction, in an image without one."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from model_batches import human_batch, small
from safetensors.torch import load_file
from small_stores import human_episode, human_store, robot_episode, write

from arvrm.config import from_dict, to_dict
from arvrm.episodes import EpisodeStore
from arvrm.interface import PlaceBatch, UserError
from arvrm.model.checkpoint import load_checkpoint, save_checkpoint
from arvrm.model.config import PlacesConfig
from arvrm.model.keypoint_vlm import KeypointVLM
from arvrm.model.metadata import CheckpointMetadata
from arvrm.model.places import MOTION_SIZE, PIXELS, PlaceNet, modes, predict_hands, said_otherwise
from arvrm.model.text import TextEncoder
from arvrm.moments import Moments
from arvrm.moments.find import episode_signals
from arvrm.sim.scene import scene_description
from arvrm.training import FinetuneConfig, PretrainConfig, pretrain
from arvrm.training.agreement import MomentFinder, PlacesSeen
from arvrm.training.loop import Trainer
from arvrm.training.places import place_samples, temperatures
from arvrm.training.pretraining import _moments_again
from arvrm.windows import EpisodeTable, HumanWindows, PlaceSamples, TextTable, WindowConfig, decode_frames

SMALL_PLACES = PlacesConfig(enabled=True, size=32, channels=(8, 16, 16), depth=(1, 1), words=16)


def place_batch(count=8, size=32, seed=0):
    g = torch.Generator().manual_seed(seed)
    hand = 0.3 * (torch.rand(count, 2, 21, 3, generator=g) - 0.5)
    place = torch.rand(count, 2, 1, 2, generator=g) - 0.5
    hand[..., :2] += place
    return {
        "image": torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=g),
        "text": torch.randn(count, 5, 256, generator=g),
        "text_mask": torch.ones(count, 5, dtype=torch.bool),
        "points": hand,
        "visible": torch.ones(count, 2, 21),
        "known": torch.ones(count, 2),
        "motion": 10 * torch.randn(count, MOTION_SIZE, generator=g),
        "motion_known": torch.ones(count, MOTION_SIZE),
    }


def test_the_next_poses_are_the_same_to_the_bit_with_places_and_without():
    losses = []
    for places in (PlacesConfig(), SMALL_PLACES):
        torch.manual_seed(3)
        network = KeypointVLM(dataclasses.replace(small(vision={"shift_static": 0.2}), places=places)).train()
        torch.manual_seed(4)
        out = network({**human_batch(), "places": place_batch()})
        losses.append(out)
    assert losses[0]["next_keypoints_predicted"].equal(losses[1]["next_keypoints_predicted"])
    assert losses[0]["loss"] != losses[1]["loss"]


def learnt_by_heart(config, batch, updates):
    """What places predict for a batch after so many updates of it alone."""
    net = PlaceNet(config, small().text).train()
    optimizer = torch.optim.AdamW(net.parameters(), 4e-3)
    for _ in range(updates):
        optimizer.zero_grad()
        sum(net.losses(batch).values()).backward()
        optimizer.step()
    return net.eval().predict(batch["image"], net.text(batch["text"], batch["text_mask"]))


def test_a_few_updates_find_the_places_of_a_few_images():
    torch.manual_seed(0)
    config = dataclasses.replace(
        SMALL_PLACES, occluders=0.0, colour_jitter=0.0, word_dropout=0.0, shift=0.0, scale=0.0, turn=0.0
    )
    batch = place_batch(4)
    found = learnt_by_heart(config, batch, 80)
    acting = found["keypoints"][:, :, (4, 8)].mean(2)
    true = (batch["points"][:, :, (4, 8), :2].mean(2) + 1) * PIXELS / 2
    assert (acting - true).norm(dim=-1).median() < 2
    assert (found["keypoints"] - (batch["points"][..., :2] + 1) * PIXELS / 2).norm(dim=-1).median() < 4
    assert (found["motion"] - batch["motion"]).abs().median() < 4


def test_what_moves_an_image_moves_its_places_and_ways():
    from arvrm.model.place_images import varied

    torch.manual_seed(0)
    config = dataclasses.replace(SMALL_PLACES, occluders=0.0, colour_jitter=0.0)
    images = torch.zeros(16, 64, 64, 3, dtype=torch.uint8)
    points = (torch.rand(16, 2, 2) - 0.5) * 0.8
    for image, (a, _) in zip(images, points, strict=True):
        column, row = ((a + 1) * 32).long().tolist()
        image[row - 1 : row + 2, column - 1 : column + 2] = 255
    pixels, moved, way = varied(images, points, config)
    line = (torch.arange(64) + 0.5) / 32 - 1
    weight = pixels[:, 0] / pixels[:, 0].sum((1, 2), keepdim=True)
    seen = torch.stack([(weight * line).sum((1, 2)), (weight * line[:, None]).sum((1, 2))], -1)
    assert (seen - moved[:, 0]).abs().max() < 0.05
    assert torch.allclose(
        (way @ (points[:, 1] - points[:, 0])[..., None])[..., 0], moved[:, 1] - moved[:, 0], atol=1e-5
    )


def test_stray_words_come_between_and_the_others_keep_their_order():
    text = torch.arange(1.0, 7.0).repeat(64, 1)[..., None].repeat(1, 1, 3)
    mask = torch.arange(6)[None].repeat(64, 1) < 5
    config = dataclasses.replace(SMALL_PLACES, word_dropout=0.0, stray_words=3)
    torch.manual_seed(0)
    out, kept = said_otherwise(text, mask, config)
    known = kept & ((out == out.round()).all(-1) & (out >= 1).all(-1))
    assert all(torch.equal(row[there][:, 0], torch.arange(1.0, 6.0)) for row, there in zip(out, known, strict=True))
    assert 0.35 < (kept.sum(1) - 5).float().mean() / 3 < 0.65


def test_the_likeliest_place_is_where_most_probability_lies_and_the_next_is_elsewhere():
    heat = torch.zeros(1, 1, 48, 48)
    heat[0, 0, 10, 20] = heat[0, 0, 10, 21] = 0.3
    heat[0, 0, 40, 5] = 0.4
    at, mass = modes(heat, 2)
    pixel = (at + 1) * PIXELS / 2
    assert torch.allclose(pixel[0, 0], torch.tensor([[42.0, 21.0], [11.0, 81.0]]), atol=1e-3)
    assert torch.allclose(mass[0, 0], torch.tensor([0.6, 0.4]), atol=1e-5)


def test_a_place_may_lie_beyond_the_edge_of_the_image():
    side = 56
    heat = torch.zeros(1, 1, side, side)
    heat[0, 0, side - 1, 4] = 1.0
    at, _ = modes(heat, 1, reach=side / 48)
    assert torch.allclose((at[0, 0, 0] + 1) * PIXELS / 2, torch.tensor([1.0, 103.0]), atol=1e-3)
    torch.manual_seed(0)
    batch = place_batch(4)
    batch["points"][..., :2] = 0.05 * batch["points"][..., :2] + torch.tensor([0.3, 1.1])
    still = {"occluders": 0.0, "colour_jitter": 0.0, "word_dropout": 0.0, "shift": 0.0, "scale": 0.0, "turn": 0.0}
    found = learnt_by_heart(dataclasses.replace(SMALL_PLACES, **still), batch, 60)
    acting, true = (points[..., (4, 8), :2].mean(2) for points in (found["keypoints"], batch["points"]))
    assert (acting - (true + 1) * PIXELS / 2).norm(dim=-1).max() < 2 and acting[..., 1].min() > 97
    assert found["heat"].shape == (4, 2, 16, 16) and found["heat"].sum((2, 3)).max() < 0.5


def test_where_heatmaps_end_with_the_image_places_beyond_it_teach_nothing():
    batch = place_batch(4)
    batch["points"][..., :2] += 3
    losses = PlaceNet(dataclasses.replace(SMALL_PLACES, border=0), small().text).eval().losses(batch)
    assert losses["heat"] == 0 and losses["shape"] == 0


def test_checkpoints_from_before_borders_have_none(tmp_path):
    network = KeypointVLM(dataclasses.replace(small(), places=dataclasses.replace(SMALL_PLACES, border=0)))
    save_checkpoint(tmp_path / "old", network, CheckpointMetadata("pretrain", history=1, stride=1, images={}))
    file = tmp_path / "old" / "config.json"
    written = json.loads(file.read_text())
    del written["model"]["places"]["border"], written["model"]["places"]["known"]
    file.write_text(json.dumps(written))
    config = load_checkpoint(tmp_path / "old").config.places
    assert config.border == 0 and config.known == () and PlacesConfig().border > 0


def test_new_words_are_read_as_the_known_sentences_most_like_them():
    torch.manual_seed(0)
    known = ("open the drawer", "lift the red block", "press the button")
    config = dataclasses.replace(SMALL_PLACES, known=known)
    net, encoder = PlaceNet(config, small().text).eval(), TextEncoder()
    own = net.understood(encoder, list(known))
    assert own.equal(net.text(*encoder.tokens(list(known))))
    new = net.understood(encoder, ["please lift up the red block", known[0]])
    assert new[1].equal(own[0])
    assert (new[0] - own[1]).norm() < 0.1 * (new[0] - own[0]).norm()
    net.train()
    with torch.no_grad():
        net.text.out[-1].bias += 1.0
    assert torch.allclose(net.eval().understood(encoder, ["please lift up the red block"])[0], new[0] + 1, atol=1e-5)
    plain = PlaceNet(SMALL_PLACES, small().text).eval()
    assert plain.understood(encoder, ["lift it"]).equal(plain.text(*encoder.tokens(["lift it"])))


def test_pretraining_notes_the_sentences_that_it_was_trained_on(root, tmp_path):
    pretrain(configuration(root, tmp_path / "run"), progress=False)
    held = set(load_checkpoint(tmp_path / "run").config.places.known)
    assert held and held <= {header.instruction for header in EpisodeStore(root / "clips").headers()}


def test_moments_are_found_again_with_what_places_have_learnt_and_once_only(root, tmp_path):
    again = dataclasses.replace(configuration(root, tmp_path / "whole"), moments_again=2)
    pretrain(again, progress=False)
    held = np.load(tmp_path / "whole" / "moments.npz")
    assert held["steps"].shape == (8, 2)
    never = pretrain(dataclasses.replace(again, output=str(tmp_path / "never"), moments_again=0), progress=False)
    assert not (never.folder / "moments.npz").exists()
    parts = dataclasses.replace(again, output=str(tmp_path / "parts"),
                                train=dataclasses.replace(again.train, checkpoint_every=1))  # fmt: skip
    for at in (1, 3):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "_stop_if_told", interrupted_at(at))
            with pytest.raises(KeyboardInterrupt):
                pretrain(dataclasses.replace(parts, resume=at > 1), progress=False)
    pretrain(dataclasses.replace(parts, resume=True), progress=False)
    assert (np.load(tmp_path / "parts" / "moments.npz")["steps"] == held["steps"]).all()
    whole, rest = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(whole[name].equal(rest[name]) for name in whole)


@pytest.mark.parametrize("damage", ["cut", "other clips", "no numbers", "one array", "no steps"])
def test_kept_moments_that_are_damaged_are_refused_in_one_line(root, tmp_path, damage):
    config = dataclasses.replace(configuration(root, tmp_path / "run"), moments_again=1)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, checkpoint_every=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_stop_if_told", interrupted_at(2))
        with pytest.raises(KeyboardInterrupt):
            pretrain(config, progress=False)
    file = tmp_path / "run" / "moments.npz"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:100])
    elif damage == "one array":
        with open(file, "wb") as writable:
            np.save(writable, np.zeros((8, 2)))
    else:
        wrong = {"other clips": np.zeros((3, 2), int), "no numbers": np.array([[None, None]] * 8)}
        steps = wrong.get(damage, np.full((8, 2), -1))
        np.savez(file, steps=steps, sure=np.zeros((len(steps), 2), np.float32))
    with pytest.raises(UserError, match=r"run/moments\.npz: .*; delete it: they are found again"):
        pretrain(dataclasses.replace(config, resume=True), progress=False)
    file.unlink()
    pretrain(dataclasses.replace(config, resume=True), progress=False)
    assert file.is_file()


def table_of(root):
    return EpisodeTable([EpisodeStore(root / "clips")], "human", 3)


def given(path, **episodes):
    path.write_text(json.dumps({"store": "somewhere", "episodes": episodes}))
    return str(path)


def test_moments_that_a_person_corrected_are_taken_as_they_are_and_stay(root, tmp_path, capsys):
    found = MomentFinder().moments(table_of(root), range(8))
    ids = [str(id) for id in table_of(root).ids]
    file = given(tmp_path / "m.json", **{ids[3]: {"touch": 5, "end": 9}, "another": {"touch": 1, "end": 2}})
    config = dataclasses.replace(configuration(root, tmp_path / "run"), moments_again=1)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, moments=(file,)))
    finder = MomentFinder.of(config.data, table_of(root))
    assert finder.moments(table_of(root), [2, 3]) == [found[2], Moments(5, 9, 1.0, 1.0)]
    pretrain(config, progress=True)
    assert "1 of 8 episodes' are given by data.moments" in capsys.readouterr().err
    held = np.load(tmp_path / "run" / "moments.npz")
    assert held["steps"][3].tolist() == [5, 9] and held["sure"][3].tolist() == [1, 1]
    given(tmp_path / "m.json", **{ids[3]: {"touch": 6, "end": 9, "touch_confidence": 0.5}})
    finder = MomentFinder.of(config.data, table_of(root))
    steps, sure = _moments_again(table_of(root), finder, tmp_path / "run")
    assert steps[3].tolist() == [6, 9] and sure[3].tolist() == [0.5, 1], "corrected once more, and resumed"
    assert (np.delete(steps, 3, 0) == np.delete(held["steps"], 3, 0)).all()
    pretrain(dataclasses.replace(config, overwrite=True, moments_again=0), progress=False)
    assert not (tmp_path / "run" / "moments.npz").exists(), "begun anew, it knows nothing of the run before"


def test_moments_that_do_not_fit_are_refused_in_one_line(root, tmp_path):
    data, table = configuration(root, tmp_path / "run").data, table_of(root)
    one = str(table.ids[0])
    for episodes, message in (
        ({"another": {"touch": 1, "end": 2}}, "names no episode of the stores"),
        ({one: {"touch": 1, "end": 10**6}}, f"{one}: end is 1000000, and it has .* steps"),
        ({one: {"touch": 9, "end": 2}}, f"{one}: end is 2, before touch, 9"),
        ({one: {"touch": -1, "end": 2}}, f"{one}.*touch is -1"),
        ({one: {"touch": "soon", "end": 2}}, f"{one}.*touch"),
        ({one: {"touch": 5}}, f"{one}.*end"),
        ({one: {"tuch": 5, "end": 9}}, f"{one}.*tuch.*touch"),
        ({one: {"touch": 5, "end": 9, "touch_confidence": 1.5}}, f"{one}.*touch_confidence is 1.5"),
        ({one: {"touch": 5, "end": 9, "steps": 7}}, f"{one} is another episode there"),
        ({one: {"touch": 5, "end": 9, "instruction": "sing"}}, f"{one} is another episode there"),
        ({}, "has no moments of episodes"),
    ):
        file = given(tmp_path / "m.json", **episodes)
        with pytest.raises(UserError, match=message) as error:
            MomentFinder.of(dataclasses.replace(data, moments=(file,)), table)
        assert "\n" not in str(error.value) and file in str(error.value)
    file = given(tmp_path / "m.json", **{one: {"touch": 1, "end": 2}})
    with pytest.raises(UserError, match="is in .* and in .*; give one of the stores"):
        MomentFinder.of(dataclasses.replace(data, moments=(file,)), table, table)
    other = given(tmp_path / "o.json", **{one: {"touch": 1, "end": 3}})
    assert MomentFinder.of(dataclasses.replace(data, moments=(file, file)), table).given
    with pytest.raises(UserError, match=f"o.json: {one} has other moments than in a file before"):
        MomentFinder.of(dataclasses.replace(data, moments=(file, other)), table)
    with pytest.raises(UserError, match="nothing.json"):
        MomentFinder.of(dataclasses.replace(data, moments=(str(tmp_path / "nothing.json"),)), table)
    with pytest.raises(ValueError, match="only places need moments"):
        PretrainConfig("x", data=dataclasses.replace(data, moments=(file,)))
    with pytest.raises(ValueError, match="motion=learned needs no moments"):
        FinetuneConfig("x", data=dataclasses.replace(data, moments=(file,)))


def test_steps_are_as_likely_as_places_hold_the_hand_or_the_gripper_there(tmp_path, monkeypatch):
    robot = robot_episode("r", steps=25)
    robot.arrays["robot_obs"][:, 0] = np.linspace(-1, 1, 25)
    store = write(tmp_path / "both", [human_episode("h", steps=25, size=96), robot])
    net = PlaceNet(SMALL_PLACES, small().text).eval()
    camera = np.array([[40.0, 0, 0, 48], [0, 40.0, 0, 48], [0, 0, 0, 1]])
    seen, side = PlacesSeen(net, TextEncoder(), camera), 24
    keypoints = store.arrays("h", ["keypoints"])["keypoints"]
    for name, where in (("h", keypoints[10, (4, 8), :2].mean(0)), ("r", np.array([48.0 + 40 * (-1 + 10 / 12), 48]))):
        cell = ((((where / 48) - 1) / net.reach + 1) * side / 2).astype(int)
        likely = np.zeros((2, side, side))
        likely[0, cell[1], cell[0]] = 500.0
        monkeypatch.setattr(PlacesSeen, "_likely", lambda self, store, header, likely=likely: likely)
        signals = episode_signals(store, store.header(name))
        logs = seen(store, store.header(name), signals)
        best = signals.rows[logs[0] == logs[0].max()]
        assert 10 in best and len(best) < 12
        assert np.ptp(logs[1]) == 0 and np.exp(logs[0].max() - logs[0].min()) == pytest.approx(51)
    blind = PlacesSeen(net, TextEncoder())
    assert blind(store, store.header("r"), episode_signals(store, store.header("r"))) is None
    assert blind.identity != seen.identity


def test_predicted_hands_are_of_one_hypothesis_and_probabilities():
    torch.manual_seed(0)
    network = KeypointVLM(dataclasses.replace(small(), places=SMALL_PLACES))
    images = np.random.default_rng(0).integers(0, 255, (3, 96, 96, 3), dtype=np.uint8)
    hands = predict_hands(network, TextEncoder(), images, ["open the drawer", "push the red block", "lift it"])
    assert hands.keypoints.shape == (3, 2, 21, 2) and hands.others.shape == (3, 2, 2, 21, 2)
    assert hands.depth.shape == (3, 2, 21) and np.abs(hands.depth[:, :, 0]).max() == 0
    assert hands.motion.shape == (3, MOTION_SIZE)
    assert (hands.heat.sum((2, 3)) < 1).all() and (hands.heat >= 0).all()
    assert (0 <= hands.confidence).all() and (hands.confidence <= 1).all()


def test_without_places_the_error_says_how_to_train_them():
    with pytest.raises(UserError, match="model.places.enabled"):
        predict_hands(KeypointVLM(small()), TextEncoder(), np.zeros((1, 96, 96, 3), np.uint8), ["lift it"])


PLACES = {"enabled": True, "size": 32, "channels": [8, 16, 16], "depth": [0, 1], "words": 16}


def configuration(root, output, **more):
    values = {
        "output": str(output),
        "place_images": 8,
        "data": {"stores": [str(root / "clips")], "validation": 0.3},
        "model": {"width": 32, "heads": 2, "layers": 1, "latents": 1, "joint_width": 8, "places": PLACES,
                  "vision": {"static_size": 32, "gripper_size": 32, "width": 16, "channels": [8, 8], "depth": 1}},
        "train": {"steps": 4, "batch": 4, "warmup": 1, "log_every": 1, "validate_every": 2, "checkpoint_every": 2,
                  "tensorboard": False, "threads": 1},
    }  # fmt: skip
    return from_dict(PretrainConfig, {**values, **more}, "test")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    human_store(folder / "clips", tasks=2, per_task=4, steps=25)
    return folder


def test_pretraining_learns_places_beside_poses_and_leaves_them_in_the_checkpoint(root, tmp_path):
    result = pretrain(configuration(root, tmp_path / "run"), progress=False)
    judged = result.metrics["validation"]
    assert np.isfinite([judged["places_touch"], judged["places_end_90"], judged["error_1"]]).all()
    network = load_checkpoint(tmp_path / "run").model
    images = np.zeros((1, 32, 32, 3), np.uint8)
    hands = predict_hands(network, TextEncoder(), images, ["pull the drawer open"])
    assert np.isfinite(hands.keypoints).all()
    poses = pretrain(configuration(root, tmp_path / "off", model={
        **to_dict(configuration(root, "").model), "places": {"enabled": False}}), progress=False)  # fmt: skip
    assert {name for name in judged if name.startswith("places")} == set(judged) - set(poses.metrics["validation"])


def test_pretraining_with_places_stopped_and_resumed_ends_with_the_same_bits(root, tmp_path):
    pretrain(configuration(root, tmp_path / "whole"), progress=False)
    short = configuration(root, tmp_path / "parts")
    first = dataclasses.replace(short, train=dataclasses.replace(short.train, steps=4, checkpoint_every=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_stop_if_told", interrupted_at(2))
        with pytest.raises(KeyboardInterrupt):
            pretrain(first, progress=False)
    pretrain(dataclasses.replace(first, resume=True), progress=False)
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert any(name.startswith("places.") for name in whole)
    assert all(whole[name].equal(parts[name]) for name in whole)


def interrupted_at(step):
    def stop(self, run, signals):
        if self.step == step:
            self._checkpoint(run)
            raise KeyboardInterrupt

    return stop


def test_nothing_that_only_a_simulator_knows_changes_what_places_learn_from(tmp_path):
    """The same clips under other names of task and scene, with another truth beside them, make the same batches."""
    plain = [human_episode(f"c{n}", "open_drawer", f"v{n}", steps=25, seed=n) for n in range(4)]
    other = [
        dataclasses.replace(
            one,
            task="turn_on_led",
            scene="D",
            meta={"judge": {"touch": 3, "end": 4, "kind": "touch"}, "synthetic": True},
        )
        for one in plain
    ]
    batches = []
    for name, episodes in (("plain", plain), ("other", other)):
        samples = samples_of(write(tmp_path / name, episodes))
        batches.append(samples.batch(*samples.draw(samples.usable(np.arange(4)), 0, 5, 16)))
    assert batches[0].keys() == PlaceBatch.__annotations__.keys()
    assert all(batches[0][name].equal(batches[1][name]) for name in batches[0])


def samples_of(store):
    table = EpisodeTable([store], "human", 3)
    text, mask = TextEncoder().tokens(list(table.sentences))
    frames = decode_frames(table, "rgb_static", 32, None)
    hands = HumanWindows(table, WindowConfig(history=1), 21, TextTable(text, mask), frames)
    return place_samples(hands, MomentFinder())


def test_a_sample_shows_an_image_before_the_touch_and_the_hand_at_the_moments(tmp_path):
    store = write(tmp_path / "clips", [human_episode("c", steps=31, seed=1, fps=30.0)])
    given = samples_of(store)
    samples = PlaceSamples(given.hands, given.frames, np.array([[16, 25]]), np.ones((1, 2)), (-15, 4))
    episodes = np.zeros(200, np.int64)
    _, place = samples.draw(episodes, 0, 0, 200)
    assert place.min() == 0 and place.max() == 5  # images at 0, 3, 6, 9, 12, 15
    assert (place == 0).sum() > (place == 5).sum()
    batch = samples.batch(episodes[:1], np.zeros(1, np.int64))
    keypoints = store.arrays("c", ["keypoints"])["keypoints"]
    pixels = (batch["points"][0, :, :, :2].numpy() + 1) * 16
    assert np.allclose(pixels, keypoints[[16, 25], :, :2], atol=1e-4)
    ways = batch["motion"][0, :18].reshape(3, 3, 2).numpy() / 3  # pixels of 32
    acting = keypoints[16, [4, 8], :2].mean(0)
    assert np.allclose(ways, keypoints[[1, 20, 25]][:, [0, 4, 8], :2] - acting, atol=1e-3)


def test_the_temperature_makes_a_heatmap_as_sure_as_it_is_right():
    g = torch.Generator().manual_seed(0)
    where = torch.rand(400, 1, 2, generator=g) * 1.6 - 0.8
    known = torch.ones(400, 1, dtype=torch.bool)
    line = (torch.arange(24) + 0.5) / 12 - 1
    centre = where + 0.1 * torch.randn(400, 1, 2, generator=g)
    squared = (line - centre[..., :1])[:, :, None] ** 2 + (line - centre[..., 1:])[..., None] ** 2
    right = -squared / (2 * 0.1**2)
    own = temperatures(right, where, known)[0]
    assert 0.8 < own < 1.5  # a little above 1, since a point is spread over the cells about it
    assert temperatures(4 * right, where, known)[0] / own == pytest.approx(4, rel=0.15)
    assert temperatures(right / 4, where, known)[0] / own == pytest.approx(0.25, rel=0.15)


def test_places_are_judged_by_every_place_that_does_what_is_said():
    path = Path(__file__).parents[1] / "benchmarks/places.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_places", path)
    assert spec is not None and spec.loader is not None
    judging = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(judging)
    fixtures = scene_description("D").fixtures
    low, high = (np.array(corner) for corner in fixtures.surfaces["table"])
    blocks = low + np.array([[0.2], [0.5], [0.8]]) * (high - low)
    tcp = blocks[0] + [0.0, 0.04, 0.01]

    def right(task, after, **others):
        landmarks = np.zeros((2, 7, 3))
        landmarks[:, :3], landmarks[1, 0] = blocks, after
        state = {"robot_obs": np.tile(np.append(tcp, np.zeros(12)), (2, 1)), "scene_obs": np.zeros((2, 24))}
        return judging.right_places(task, fixtures, 0, landmarks=landmarks, **(state | others))

    assert np.allclose(right("lift_red_block_table", blocks[0] + [0, 0, 0.1]), tcp), "words name the block"
    # Behind any block of the table; and above one or the other of those that are not held.
    apart = blocks[1:] - blocks[0]
    assert np.allclose(right("push_into_drawer", blocks[0] - [0, 0.2, 0.1]), tcp + [[0, 0, 0], *apart])
    assert np.allclose(right("stack_block", blocks[1] + [0, 0, 0.04]), tcp + [[0, 0, 0], blocks[2] - blocks[1]])
    opened = np.zeros((2, 24))
    opened[:, 1] = 0.2
    inside = right("place_in_drawer", blocks[0] - [0, 0.2, 0.1], scene_obs=opened)[1:]
    shut = np.array(fixtures.drawer_box)[:, :2]
    assert len(inside) > 100 and (inside[:, 1] < fixtures.table_box[0][1]).all(), "where the table does not hide it"
    assert (inside[:, :2] >= shut[0] + np.array(fixtures.drawer_direction)[:2] * 0.2 + 0.019).all()
    cabinet = right("place_in_slider", blocks[0] + [0, 0.2, 0])[1:]
    assert (cabinet[:, :2] >= np.array(fixtures.cabinet_box[0][:2]) - 1e-9).all() and (cabinet[:, 2] == tcp[2]).all()
