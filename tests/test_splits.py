"""Few-shot manifests: seeded, nested, shareable, checked."""

import json
from dataclasses import replace

import pytest
from small_stores import robot_episode

from arvrm import cli
from arvrm.episodes import EpisodeStore, EpisodeWriter
from arvrm.interface import UserError
from arvrm.sources.splits import FewShotRecipe, load_manifest, make_manifest, save_manifest, write_subset

TASKS = {"open_drawer": 40, "turn_on_led": 20, "close_drawer": 3}


def write_store(path, note="a", quality=90, words="do it", scenes="AD"):
    with EpisodeWriter(path, {"source": note}, jpeg_quality=quality) as writer:
        for task, count in TASKS.items():
            for i in range(count):
                episode = robot_episode(f"{task}/{i:03d}", steps=2, size=16)
                scene = scenes[i % len(scenes)]
                writer.append(replace(episode, task=task, instruction=f"{words} {task}", scene=scene))
        play = robot_episode("play/000", steps=2, size=16)
        writer.append(replace(play, task="", instruction=""))
    return EpisodeStore(path)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("few") / "store")


def of_task(manifest, task):
    return [id for id in manifest.episodes if id.startswith(task)]


def test_each_task_keeps_its_share_and_at_least_one(store):
    manifest = make_manifest(store, FewShotRecipe(0.1))
    assert [len(of_task(manifest, task)) for task in TASKS] == [4, 2, 1]
    assert manifest.chosen_from == 63


def test_each_task_of_each_scene_keeps_its_share(store):
    manifest = make_manifest(store, FewShotRecipe(0.1, per="task-scene"))
    for scene in "AD":
        chosen = [id for id in of_task(manifest, "open_drawer") if store.header(id).scene == scene]
        assert len(chosen) == 2


def test_each_scene_or_the_whole_store_keeps_its_share(store):
    scenes = [store.header(id).scene for id in make_manifest(store, FewShotRecipe(0.1, per="scene")).episodes]
    assert sorted(scenes) == ["A"] * 3 + ["D"] * 3
    assert len(make_manifest(store, FewShotRecipe(0.1, per="store")).episodes) == 6


def test_play_data_is_never_chosen(store):
    everything = make_manifest(store, FewShotRecipe(1.0)).episodes
    assert len(everything) == 63 and "play/000" not in everything


def test_smaller_fractions_are_subsets_of_larger_ones(store):
    one, five, ten = (set(make_manifest(store, FewShotRecipe(f, seed=3)).episodes) for f in (0.01, 0.05, 0.1))
    assert one < five < ten


def test_the_seed_decides_and_nothing_else(store, tmp_path):
    other = write_store(tmp_path / "elsewhere")
    recipe = FewShotRecipe(0.1, seed=5)
    assert make_manifest(store, recipe) == make_manifest(other, recipe)
    assert make_manifest(store, recipe).episodes != make_manifest(store, FewShotRecipe(0.1, seed=6)).episodes


def test_leaving_out_a_task_does_not_change_the_draw_of_others(store):
    some = make_manifest(store, FewShotRecipe(0.1, tasks=("open_drawer",)))
    assert list(some.episodes) == of_task(make_manifest(store, FewShotRecipe(0.1)), "open_drawer")


def test_a_saved_manifest_comes_back_equal_and_fits_an_equal_store(store, tmp_path):
    manifest = make_manifest(store, FewShotRecipe(0.05, per="scene", seed=2, scenes=("A",)))
    save_manifest(manifest, tmp_path / "m.json")
    assert load_manifest(tmp_path / "m.json", write_store(tmp_path / "again")) == manifest
    assert str(tmp_path) not in (tmp_path / "m.json").read_text()
    with pytest.raises(UserError, match="--overwrite"):
        save_manifest(manifest, tmp_path / "m.json")


def test_a_store_of_other_settings_is_accepted_only_when_asked(store, tmp_path):
    save_manifest(make_manifest(store, FewShotRecipe(0.05)), tmp_path / "m.json")
    other = write_store(tmp_path / "other", quality=70)
    with pytest.raises(UserError, match="settings"):
        load_manifest(tmp_path / "m.json", other)
    assert load_manifest(tmp_path / "m.json", other, strict=False).episodes


def test_a_store_without_the_episodes_or_with_others_is_refused(store, tmp_path):
    save_manifest(make_manifest(store, FewShotRecipe(0.05)), tmp_path / "m.json")
    with EpisodeWriter(tmp_path / "one", {}) as writer:
        writer.append(robot_episode("x", steps=2, size=16))
    with pytest.raises(UserError, match="lacks"):
        load_manifest(tmp_path / "m.json", EpisodeStore(tmp_path / "one"))
    with pytest.raises(UserError, match="same ids"):
        load_manifest(tmp_path / "m.json", write_store(tmp_path / "reworded", words="please"), strict=False)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("recipe"),
        lambda m: m.update(format="x"),
        lambda m: m.update(version=9),
        lambda m: m.update(episodes=[]),
        lambda m: m.update(episodes=["a", "a"]),
        lambda m: m.update(more=1),
    ],
)
def test_a_file_that_is_no_manifest_is_an_error_of_one_line(store, tmp_path, change):
    save_manifest(make_manifest(store, FewShotRecipe(0.05)), tmp_path / "m.json")
    values = json.loads((tmp_path / "m.json").read_text())
    change(values)
    (tmp_path / "m.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="m.json"):
        load_manifest(tmp_path / "m.json")


@pytest.mark.parametrize(
    "values", [{"fraction": 0.0}, {"fraction": 1.5}, {"fraction": 0.1, "per": "hand"}, {"fraction": 0.1, "seed": -1}]
)
def test_an_impossible_recipe_is_refused(values):
    with pytest.raises(UserError):
        FewShotRecipe(**values)


def test_an_unknown_task_is_named_with_the_known_ones(store):
    with pytest.raises(UserError, match="open_drawer"):
        make_manifest(store, FewShotRecipe(0.1, tasks=("fly",)))


def test_a_manifests_episodes_become_a_store_of_the_same_records(store, tmp_path):
    manifest = make_manifest(store, FewShotRecipe(0.1))
    write_subset(store, manifest, tmp_path / "few")
    few = EpisodeStore(tmp_path / "few")
    few.verify()
    assert few.ids == manifest.episodes
    assert all(few.encoded(id) == store.encoded(id) for id in few.ids)


def test_the_verb_writes_and_checks_a_manifest(store, tmp_path, capsys):
    file, few = str(tmp_path / "m.json"), str(tmp_path / "few")
    made = ["--fraction", "0.1", "--tasks", "open_drawer", "close_drawer", "--output", file]
    assert cli.main(["few-shot", "--store", str(store.path), *made]) == 0
    assert cli.main(["few-shot", "--store", str(store.path), "--check", file, "--write-store", few]) == 0
    assert capsys.readouterr().out.splitlines() == [file, file, few]
    assert len(EpisodeStore(few)) == 5
    assert len(load_manifest(file, store).episodes) == 5
