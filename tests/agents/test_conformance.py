"""Every file in `agents/` is an agent: whole, typed, described; and a file that is none is named in one line."""

import inspect

import numpy as np
import pytest

from ringrl import recipes
from ringrl.agent import Agent, AgentDescription, Decoder, PolicySource, RolloutSpec, Trainer, make_agent, make_decoder
from ringrl.config import AgentConfig
from ringrl.errors import UserError
from ringrl.policy import UNBOUNDED
from ringrl.sampling.samplers import ContextSampler
from ringrl.sequence_agent import LabelledSequenceAgent
from ringrl.store.episode_store import open_store

NAMES = [name for name, _ in recipes.listing()["agents"]]
TASK = "cartpole_balance"
each_agent = pytest.mark.parametrize("name", NAMES)
each_decoder = pytest.mark.parametrize("name", [name for name in NAMES if make_agent(name).decoder])
each_policy = pytest.mark.parametrize("name", [name for name in NAMES if make_agent(name).policy])
each_sampler = pytest.mark.parametrize("name", [name for name in NAMES if hasattr(make_agent(name), "context_sampler")])


def test_there_are_agents():
    assert len(NAMES) >= 6


@each_agent
def test_it_fulfils_the_protocol_under_its_default_hyper_parameters(name):
    agent = make_agent(name)
    assert isinstance(agent, Agent) and isinstance(agent.config, AgentConfig) and agent.config.name == name
    assert agent.config == type(agent.config).model_validate(agent.config.model_dump())
    assert isinstance(agent.description, AgentDescription) and agent.description.display_name
    assert agent.decoder is None or isinstance(agent.decoder, Decoder)
    assert agent.policy is None or isinstance(agent.policy, PolicySource)
    assert agent.decoder is not None or agent.policy is not None


@each_agent
def test_its_file_is_documented_and_typed(name):
    module = recipes.load("agents", name)
    assert module.__doc__ and module.Config.__doc__ and module.Agent.__doc__
    functions = [x for x in vars(module.Agent).values() if inspect.isfunction(x)]
    functions += [x for x in vars(module).values() if inspect.isfunction(x) and x.__module__ == module.__name__]
    for function in functions:
        signature = inspect.signature(function)
        untyped = [each for each in signature.parameters.values() if each.annotation is inspect.Parameter.empty]
        assert [each.name for each in untyped] in ([], ["self"]), function
        assert signature.return_annotation is not inspect.Signature.empty, function
        assert function.__doc__ or function.__name__.startswith("_"), function


@each_agent
def test_every_hyper_parameter_has_a_comment(name):
    module = recipes.load("agents", name)
    lines = inspect.getsource(module).splitlines()
    for field in set(module.Config.model_fields) - set(AgentConfig.model_fields):
        (index,) = [i for i, line in enumerate(lines) if line.startswith(f"    {field}: ")][:1]
        assert "# " in lines[index] or lines[index - 1].lstrip().startswith("# "), lines[index]


@each_decoder
def test_its_batches_follow_a_schema(name):
    assert {"position", "segment_ids", "weight"} <= set(make_agent(name).decoder.schema)


@each_policy
def test_it_says_how_it_is_rolled_out(name):
    spec = make_agent(name).policy.rollout_spec(24, np.array([1.0, 3.0]))
    assert isinstance(spec, RolloutSpec) and (1 <= spec.context_steps <= 24 or spec.context_steps == UNBOUNDED)


@each_sampler
def test_it_trains_on_episodes_where_it_samples_contexts(name, tiny_config, tiny_store):
    agent = make_agent(name)
    sampler = agent.context_sampler(open_store(tiny_store), TASK, 4)
    assert isinstance(sampler, ContextSampler) and len(sampler.sample(np.random.default_rng(0)).episode)
    if isinstance(agent, LabelledSequenceAgent):  # which needs a teacher
        with pytest.raises(UserError, match="agent.teacher"):
            agent.make_trainer(tiny_config({"name": name}))
        return
    assert isinstance(agent.make_trainer(tiny_config({"name": name})), Trainer)


@each_agent
def test_a_copy_under_another_name_is_the_same_agent(name, tmp_path):
    copy = make_agent(str(recipes.copy(f"agents/{name}", tmp_path / "mine.py")))
    original = make_agent(name)
    assert copy.description == original.description
    assert (copy.decoder is None, copy.policy is None) == (original.decoder is None, original.policy is None)
    assert copy.config.model_dump(exclude={"name"}) == original.config.model_dump(exclude={"name"})


CONFIG = "from ringrl.config import AgentConfig\nclass Config(AgentConfig): ...\n"
SEQUENCE = "from ringrl.sequence_agent import SequenceAgent\n"
OLD = "\n".join(f"def {name}(config): ..." for name in ("planner", "tokens", "loss", "acting"))
OLD_LEARNER = "\n".join(f"def {name}(config): ..." for name in ("init", "make_replay", "update", "act"))


@pytest.mark.parametrize(
    "source, message",
    [
        (CONFIG, "not an agent, for it has no class Agent"),
        ("class Agent: ...", "not an agent, for it has no class Config"),
        ("class Agent: ...\nclass Config: ...", "its Config .* does not extend ringrl.config.AgentConfig"),
        (CONFIG + "class Agent: ...", "its class Agent has no description, decoder, policy, make_trainer"),
        (CONFIG + SEQUENCE + "class Agent(SequenceAgent): ...", "has no context_sampler, rollout_spec, tokens"),
        (CONFIG + OLD, r"earlier ringrl.*planner, tokens, loss, acting; .* `class Agent\(SequenceAgent\)`"),
        (CONFIG + OLD_LEARNER, r"earlier ringrl.*init, make_replay, update, act; .* `class Agent\(TransitionAgent\)`"),
    ],
    ids=["no agent", "no config", "config", "empty", "half", "earlier", "earlier learner"],
)
def test_a_file_that_is_no_agent_is_named(source, message, tmp_path):
    path = tmp_path / "half.py"
    path.write_text(source + "\n")
    with pytest.raises(UserError, match=f"half.py: .*{message}") as caught:
        make_agent(str(path))
    assert "\n" not in str(caught.value)


# What agents of two earlier ringrl import: decision_transformer.py and td3.py.
EARLIER = {
    "decision_transformer": """
from ringrl.agent import Acting
from ringrl.config import AgentConfig
from ringrl.experience.chain import Windows, top_fraction
from ringrl.model.tokens import TokenLayout
""",
    "td3": """
from ringrl.config import AgentConfig
from ringrl.learners.networks import MLP, Critics, descend, optimizer_state, polyak
from ringrl.learners.replay import Replay, Transitions
""",
}


@pytest.mark.parametrize(
    "name, missing",
    [
        ("decision_transformer", "cannot import name 'Acting' from 'ringrl.agent'"),
        ("td3", "No module .*ringrl.learners"),
    ],
)
def test_an_agent_of_the_earlier_interface_is_named(name, missing, tmp_path, tiny_config):
    path = tmp_path / "agent.py"
    path.write_text(EARLIER[name] + CONFIG)
    for load in (make_agent, lambda path: tiny_config({"name": path})):
        with pytest.raises(
            UserError, match=rf"agent.py: written for an earlier ringrl \({missing}.?\); an agent"
        ) as caught:
            load(str(path))
        assert str(caught.value).endswith("`ringrl cp decision_transformer NEW.py` copies one to start from")
        assert "\n" not in str(caught.value)


def test_a_file_without_description_is_named(tmp_path):
    methods = "".join(f"    def {name}(self): ...\n" for name in ("context_sampler", "tokens", "rollout_spec"))
    (tmp_path / "half.py").write_text(f"{CONFIG}{SEQUENCE}class Agent(SequenceAgent):\n{methods}")
    with pytest.raises(UserError, match="its class Agent has no description;"):
        make_agent(str(tmp_path / "half.py"))


def test_what_has_no_sequence_model_is_named():
    with pytest.raises(UserError, match="td3: this agent has no sequence model"):
        make_decoder("td3")
