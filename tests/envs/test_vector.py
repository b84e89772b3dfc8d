import numpy as np

from ringrl import envs


def test_environments_are_seeded_one_by_one():
    vector = envs.make_vector("walker_walk", 3, seed=7)
    observation, infos = vector.reset()
    singles = [envs.make_env("walker_walk", seed=7 + index) for index in range(3)]
    np.testing.assert_array_equal(observation, np.stack([env.reset()[0] for env in singles]))
    actions = np.random.default_rng(0).uniform(-1, 1, (3, 6)).astype(np.float32)
    observation, reward, terminated, truncated, infos = vector.step(actions)
    steps = [env.step(action) for env, action in zip(singles, actions, strict=True)]
    np.testing.assert_array_equal(observation, np.stack([step[0] for step in steps]))
    np.testing.assert_array_equal(reward, [step[1] for step in steps])
    np.testing.assert_array_equal(infos["physics"], np.stack([step[4]["physics"] for step in steps]))
    np.testing.assert_array_equal(infos["rows"][2]["physics"], steps[2][4]["rows"]["physics"])
    assert observation.dtype == np.float32 and infos["physics"].dtype == np.float64
    assert not terminated.any() and not truncated.any() and infos["_rows"].all()


def test_only_masked_environments_are_reset_and_holds_may_differ_in_length():
    vector = envs.make_vector("cartpole_swingup", 2, action_repeat=600)
    first, _ = vector.reset(seed=0)
    zeros = np.zeros((2, 1), np.float32)
    after, *_ = vector.step(zeros)
    restarted, infos = vector.reset(options={"reset_mask": np.array([True, False])})
    np.testing.assert_array_equal(restarted[1], after[1])
    assert not np.array_equal(restarted[0], after[0])
    np.testing.assert_array_equal(infos["_physics"], [True, False])
    _, _, _, truncated, infos = vector.step(zeros)
    np.testing.assert_array_equal(truncated, [False, True])
    assert [len(rows["reward"]) for rows in infos["rows"]] == [600, 400]
