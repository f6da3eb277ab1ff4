"""Rollouts: the policy answers prompts, frozen models judge, and the trainer is dealt minibatches of what to learn."""

import dataclasses
import logging
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hcxjax.checks import whole
from hcxjax.data.hashing import fingerprint
from hcxjax.data.kept_tokenizer import check_same, keep, kept
from hcxjax.data.prompts import Prompts
from hcxjax.data.rollouts.arrivals import ByArrival
from hcxjax.data.rollouts.episodes import Episodes, joined
from hcxjax.data.rollouts.judges import Judge, Reference, Reward
from hcxjax.data.rollouts.lessons import Deal, Judged, Lessons, minibatch, packed_minibatch
from hcxjax.data.rollouts.log import RolloutLog
from hcxjax.data.rollouts.player import Call, Played, Player
from hcxjax.data.rollouts.players import Ahead, Held, InTurn, Players
from hcxjax.inference.engine import EngineSettings
from hcxjax.mesh import Layout
from hcxjax.models.config import DecoderConfig
from hcxjax.objectives.language_model import LanguageModel
from hcxjax.objectives.lora import LoRA
from hcxjax.objectives.ppo import PPO
from hcxjax.objectives.returns import AdaptiveKL
from hcxjax.protocols import Batch, Params, PyTree, Source
from hcxjax.text.vocabulary import Vocabulary

_log = logging.getLogger(__name__)

LEAST_KL = -1.0
"""Nats an answer. The estimate is 0 or more on average; well below, answers are not drawn from the policy."""


@dataclasses.dataclass
class Rollouts:
    """The `Source` of PPO; opens nothing until `start`.

    Every `epochs` x `minibatches` updates of the trainer it takes the answers to `episodes` prompts, has policy and
    critic judge them, and deals them. What it deals, and in which order, is a function of the seed, the update and the
    parameters, also after a resume.

    Source: the loop of Huang et al. 2024, arXiv:2403.17031; four models and a queue: HyperCLOVA X, arXiv:2404.01954.

    Attributes:
      objective: whose policy writes.
      prompts: what is answered.
      reward: the RUN_DIR of the reward model's run, with its card; or any other judge.
      reference: the folder of the policy's first weights, a run's or an imported model's; None, for an adapter:
        the base that it changes, of which one copy is kept.
      episodes: answers a rollout, one for each prompt.
      new_tokens: of an answer, at most.
      run_dir: where rollouts are written down and a copy of the vocabulary is kept; None writes nothing.
      lessons: how rewards become advantages.
      adaptive: lets the KL coefficient follow the divergence; None holds `Lessons.beta`.
      epochs, minibatches: how often, and in how many parts, a rollout is dealt.
      rows: episodes that are judged at once; None: all that share a minibatch.
      packed: None: each episode is a row of a minibatch. Else they share rows, whose number is a multiple of this one
        (and of what a minibatch is divided into): less is padded, a few more shapes are compiled.
      accumulate: microbatches that the trainer divides a minibatch into.
      lag: None: rollouts and updates take turns. Else rollouts are played in a thread, by the parameters that the
        rollout `lag` before them was learnt from; 0 gives the same bits as None.
      order: 'prompts': an update gets the answers to its own prompts. 'arrival', with a lag: those finished first.
        NOT REPEATABLE: what is learnt depends on who was faster.
      settings: of the engine; its context follows from the prompts and `new_tokens`.
      engine_layout, reference_layout, reward_layout: devices of their own; None: the trainer's.
      reward_model: sizes of the reward model; None: those of the critic, which starts from it.
      logged: episodes of a rollout that are written down, from the first.
      seed: of the prompts' order, the draws and the permutations.
    """

    objective: PPO | LoRA
    prompts: Prompts
    reward: str | Judge
    reference: str | None
    episodes: int
    new_tokens: int
    run_dir: str | None = None
    lessons: Lessons = Lessons()
    adaptive: AdaptiveKL | None = None
    epochs: int = 4
    minibatches: int = 1
    rows: int | None = None
    packed: int | None = None
    accumulate: int = 1
    lag: int | None = None
    order: str = "prompts"
    settings: EngineSettings = EngineSettings()
    engine_layout: Layout | None = None
    reference_layout: Layout | None = None
    reward_layout: Layout | None = None
    reward_model: DecoderConfig | None = None
    logged: int = 16
    seed: int = 0

    def __post_init__(self):
        whole(self, 1, "episodes", "new_tokens", "epochs", "minibatches", "accumulate")
        whole(self, 0, "logged", "seed")
        if self.lag is not None:
            whole(self, 0, "lag")
        if self.reference is None:
            if not isinstance(self.objective, LoRA):
                raise ValueError("Rollouts.reference is None; name the folder of the policy's first weights (POLICY)")
            if moved := [prefix for prefix in self.objective.also if not prefix.strip("/").startswith("value/")]:
                raise ValueError(
                    f"LoRA.also is {self.objective.also} and Rollouts.reference is None: the base would be trained and "
                    f"be the reference too; leave out {', '.join(moved)}, or name the reference's folder (POLICY)"
                )
        if self.order not in ("prompts", "arrival") or (self.order == "arrival" and self.lag is None):
            raise ValueError(
                f"Rollouts.order is {self.order!r}; it must be 'prompts', or 'arrival' together with a lag (LAG)"
            )
        if self.episodes % self.minibatches:
            raise ValueError(
                f"Rollouts.episodes is {self.episodes}; it must be a multiple of minibatches, {self.minibatches}"
            )
        if self.rows is not None:
            whole(self, 1, "rows")
        if self.packed is not None:
            whole(self, 1, "packed")
            if self.packed > (size := self.episodes // self.minibatches):
                raise ValueError(f"Rollouts.packed is {self.packed}; it must be at most a minibatch's episodes, {size}")
        if self.episodes % self._rows:
            raise ValueError(f"Rollouts.episodes is {self.episodes}; it must be a multiple of rows, {self._rows}")
        if self.adaptive is not None:
            self.adaptive.following(self.lessons.beta, 0.0, self.episodes)
        self._updates_before = 0

    @property
    def _rows(self) -> int:
        return self.rows or self.episodes // self.minibatches

    @property
    def deal(self) -> Deal:
        """The order of the minibatches."""
        return Deal(self.episodes, self.epochs, self.minibatches, self.seed)

    @property
    def width(self) -> int:
        """Places of an episode."""
        return self.prompts.length + self.new_tokens

    def follow(self, before: Source, updates: int) -> None:
        """Prompts of an earlier phase come again: what follows a rollout that was cut off is not defined."""

    def start(self, layout: Layout, params: Params) -> None:
        """Reads the prompts and the frozen models, and compiles nothing yet.

        Raises:
          ValueError: an episode is longer than a model's context, the rows do not divide over a mesh, or a frozen model
            does not fit.
        """
        self._layout = layout
        self._check(layout)
        self._prompts = self.prompts.load("train")
        vocabulary = self._prompts.vocabulary
        if self.run_dir is not None:
            keep(vocabulary, self.run_dir)
        places = [place or layout for place in (self.engine_layout, self.reference_layout, self.reward_layout)]
        engine_place, reference_place, reward_place = places
        self._engine_places, self._reference_places = map(self._decoder_places, (engine_place, reference_place))
        reference = Reference(self.objective, reference_place)
        self._reference = None if self.reference is None else reference.read(self.reference, vocabulary)
        self._judge_of_answers = self._opened_judge(vocabulary, reward_place)
        self._player = Player(
            self.objective.model,
            reference,
            self._judge_of_answers,
            width=self.width,
            new_tokens=self.new_tokens,
            temperature=self.objective.temperature,
            stop_ids=self._prompts.stop_ids,
            seed=self.seed,
            rows=self._rows,
            settings=self.settings,
            layout=engine_place,
        )
        self._players = self._chosen_players()
        self._judged = jax.jit(self.objective.judged, out_shardings=layout.sharding())
        self._log = RolloutLog(self.run_dir, self.logged, self._prompts)
        self._update = 0
        self._beta = self._next_beta = self.lessons.beta
        self._episodes = Episodes.empty(self.episodes, self.width)
        self._judgement = _nothing(self.episodes, self.width)
        self._lesson: dict[str, np.ndarray] | None = None
        self._measures: dict[str, float] = {}
        self._dealt_at = time.perf_counter()
        self._fingerprints = {
            "tokenizer": fingerprint(vocabulary.fingerprint),
            "prompts": self._prompts.fingerprint,
            "reward_weights": fingerprint(self._judge_of_answers.fingerprint),
            "reference": 0 if self._reference is None else reference.fingerprint(self._reference),
            "dealing": fingerprint([self.episodes, self.epochs, self.minibatches, self.seed]),
        }
        _log.info("%d prompts, %d a rollout, %d updates each", len(self._prompts), self.episodes, self.deal.hands)

    def _opened_judge(self, vocabulary: Vocabulary, layout: Layout) -> Judge:
        if not isinstance(self.reward, str):
            return self.reward
        return Reward(self.reward_model or self.objective.critic, self.reward, vocabulary, layout)

    def _decoder_places(self, layout: Layout) -> PyTree:
        """Where a policy's parameters lie on the devices of `layout`."""
        with layout.active():
            return layout.param_shardings(jax.eval_shape(LanguageModel(self.objective.model).init, jax.random.key(0)))

    def _chosen_players(self) -> Players:
        if self.lag is None:
            return InTurn(self._play)
        if self.order == "arrival":
            _log.warning("Rollouts.order is 'arrival': this run is NOT REPEATABLE, and a resumed one is another run")
            return ByArrival(self._player, lambda: self._reference, self.episodes, self.lag)
        return Ahead(self._play, self.lag)

    def _check(self, layout: Layout) -> None:
        models = (self.objective.model, self.objective.critic, self.reward_model or self.objective.critic)
        longest = min(model.max_length for model in models)
        if self.width > longest:
            raise ValueError(
                f"an episode has up to {self.width} tokens (Prompts.length {self.prompts.length} + Rollouts.new_tokens "
                f"{self.new_tokens}); the models' context is {longest} (DecoderConfig.max_length)"
            )
        places = {"engine_layout": self.engine_layout, "reference_layout": self.reference_layout}
        for place in (layout, *(place for place in (*places.values(), self.reward_layout) if place is not None)):
            if self._rows % place.batch_shards:
                raise ValueError(
                    f"Rollouts.rows is {self._rows}; it must be a multiple of the mesh's shards of a batch, "
                    f"{place.batch_shards}"
                )
        parts, size = layout.batch_shards * self.accumulate, self.episodes // self.minibatches
        if self.packed is None and size % parts:
            raise ValueError(
                f"a minibatch has {size} episodes (Rollouts.episodes / minibatches); it must be a multiple of {parts} "
                f"(microbatches {self.accumulate} x mesh shards of the batch {layout.batch_shards}), or set PACKED"
            )
        if self.lag is not None and jax.process_count() > 1:
            raise ValueError(
                f"Rollouts.lag is {self.lag}, with {jax.process_count()} processes: threads of several processes would "
                "start their programs in different orders and wait for each other for ever; set it to None"
            )

    def begin_from(self, folder: str) -> None:
        """ValueError where the weights in `folder` were trained with another tokenizer."""
        check_same(self._prompts.vocabulary, folder)

    def next(self, params: Params, step: int) -> Batch:
        """The minibatch of `step`; the first of each rollout waits for its answers."""
        update, hand = divmod(step, self.deal.hands)
        self._measures = {}
        if hand == 0:
            if self.lag is None:
                jax.block_until_ready(params)  # the engine would wait for the last update, which is the trainer's time
            self._measures = {"time/train": time.perf_counter() - self._dealt_at}
            self._roll_out(params, update)
            self._dealt_at = time.perf_counter()
        if self._lesson is None:
            self._lesson = self._learn()[0]
        assert self._update == update, (self._update, update)
        dealt = self.deal.rows(update, hand)
        if self.packed is None:
            batch = minibatch(self._lesson, dealt)
        else:
            multiple = math.lcm(self.packed, self._layout.batch_shards * self.accumulate)
            batch = packed_minibatch(self._lesson, dealt, self._episodes.ends_B, self.width, multiple)
        return self._layout.shard_batch(
            lambda start, stop: {name: array_BT[start:stop] for name, array_BT in batch.items()},
            len(batch["tokens_BT"]),
        )

    def _roll_out(self, params: Params, update: int) -> None:
        if self._reference is None:
            self._reference = self._base(params)
        taken = self._players.take(self._call, update, lambda: self._writers(params))
        judging = time.perf_counter()
        self._update, self._episodes = update, taken.played.episodes
        self._judgement = self._judge(params)
        self._beta = self._next_beta
        self._lesson, told = self._learn()
        if self.adaptive is not None:
            self._next_beta = self.adaptive.following(self._beta, told["objective/kl"], self.episodes)
        self._warn(told)
        if np.any(self._episodes.version_B != update):
            told.pop("sampler_trainer_logp_diff")  # another policy drew them: no measure of the engine
        written = float(self._lesson["mask_BT"].sum())
        self._measures |= told | {
            "rollout/staleness": float(np.mean(update - self._episodes.version_B)),
            "rollout/queue_wait": taken.waited_s if self.lag is not None else 0.0,
            "time/score": taken.played.judging_s + time.perf_counter() - judging,
        }
        if writing := taken.played.writing_s:  # not known of what a checkpoint held, nor of episodes as they arrive
            self._measures |= {"time/generate": writing, "rollout/tokens_per_s": written / writing}
        self._log.write(update, self._episodes, self._lesson)

    def _call(self, update: int) -> Call:
        numbers = self._prompts.batch(update, self.episodes, self.seed)
        return Call(
            update,
            max(0, update - (self.lag or 0)),
            [self._prompts.tokens[number] for number in numbers],
            np.asarray(numbers, np.int32),
            [self._prompts.sources[number] for number in numbers],
        )

    def _base(self, params: Params) -> Params:
        """The adapter's base. The trainer's update gives its arrays away, though it returns the same."""
        assert isinstance(self.objective, LoRA)
        return jax.device_put(jax.tree.map(jnp.copy, self.objective.reference(params)), self._reference_places)

    def _writers(self, params: Params) -> Params:
        """The policy, on the engine's devices. The trainer gives its arrays away, so a thread gets copies."""
        policy = self.objective.policy(params)
        policy = policy if self.lag is None else jax.tree.map(jnp.copy, policy)
        return jax.device_put(policy, self._engine_places)

    def _play(self, call: Call, policy: Params) -> Played:
        return self._player.play(call, policy, self._reference)

    def _judge(self, params: Params) -> Judged:
        """What policy and critic say of the episodes now, some rows at a time."""
        judged = _nothing(self.episodes, self.width)
        for start in range(0, self.episodes, self._rows):
            episodes = self._episodes.rows(start, start + self._rows)
            batch = episodes.batch()
            batch |= self._critic_scale(episodes, batch["tokens_BT"].shape[1])
            placed = self._layout.shard_batch(
                lambda first, last, batch=batch: {name: rows[first:last] for name, rows in batch.items()}, self._rows
            )
            for whole_BT, part_BT in zip(judged, self._judged(params, placed), strict=True):
                whole_BT[start : start + self._rows, : part_BT.shape[1]] = np.asarray(part_BT)
        return judged

    def _learn(self) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        stop_ids = self._prompts.stop_ids
        lesson, told = self.lessons.learn(self._episodes, self._judgement, stop_ids, self._update, self._beta)
        return lesson | self._critic_scale(self._episodes, lesson["tokens_BT"].shape[1]), told

    def _critic_scale(self, episodes: Episodes, width: int) -> dict[str, np.ndarray]:
        """What takes the critic, which was the reward model, to the rewards' scale; the same all along a row."""
        sources = self._prompts.sources
        mean_B, std_B = self._judge_of_answers.scales([str(sources[number]) for number in episodes.prompt_B])
        shape = (len(mean_B), width)
        return {
            "critic_mean_BT": np.broadcast_to(mean_B[:, None], shape),
            "critic_std_BT": np.broadcast_to(std_B[:, None], shape),
        }

    def _warn(self, told: dict[str, float]) -> None:
        if told["objective/kl"] < LEAST_KL:
            _log.warning(
                "rollout %d: the KL divergence is estimated as %.2f nats an answer, which cannot be far below 0: the "
                "answers are not drawn from the policy as it is trained (sampler_trainer_logp_diff %.2g). Look at "
                "EngineSettings.cache_dtype, the stop ids, and Rollouts.lag",
                self._update,
                told["objective/kl"],
                told["sampler_trainer_logp_diff"],
            )

    def measures(self) -> dict[str, float]:
        """Of a rollout, with its first minibatch."""
        return self._measures

    def get_state(self) -> dict[str, Any]:
        """The rollout that is dealt, those that were played ahead (waits for these), and β."""
        held = self._players.held()
        rows = 0 if held.episodes is None else len(held.episodes.prompt_B)
        rest = Episodes.empty(self._players.most * self.episodes - rows, self.width)
        ahead = rest if held.episodes is None else joined([held.episodes, rest])
        return {
            "update": self._update,
            "beta": np.float64(self._beta),
            "next_beta": np.float64(self._next_beta),
            "dealt": {**vars(self._episodes), **self._judgement._asdict()},
            "asked": held.asked,
            "held": rows,
            **({"ahead": dict(vars(ahead))} if self._players.most else {}),
            **self._fingerprints,
        }

    def set_state(self, state: PyTree) -> None:
        """Goes on in the rollout of `state`.

        Raises:
          ValueError: `state` belongs to other prompts, another tokenizer, reward model, reference or order.
        """
        meaning = {
            "tokenizer": "the tokenizer (Tokenizer.*, or its file)",
            "prompts": "the prompts (Prompts.*, or the files they come from)",
            "reward_weights": "the reward model (Rollouts.reward, REWARD)",
            "reference": "the reference's weights: name the old checkpoint, FOLDER@STEP (Rollouts.reference, POLICY)",
            "dealing": "EPISODES, EPOCHS, MINIBATCHES or SEED",
        }
        changed = [meaning[name] for name, value in self._fingerprints.items() if int(state[name]) != value]
        if changed:
            raise ValueError(f"the checkpoint's rollouts are not this run's: what differs is {'; '.join(changed)}")
        self._update, self._beta = int(state["update"]), float(state["beta"])
        self._next_beta = self.lessons.beta if self.adaptive is None else float(state["next_beta"])
        dealt = dict(state["dealt"])
        self._judgement = Judged(*(np.array(dealt.pop(name)) for name in Judged._fields))
        self._episodes = Episodes(**{name: np.array(value) for name, value in dealt.items()})
        rows = int(state["held"])
        ahead = {name: np.array(value[:rows]) for name, value in state["ahead"].items()} if rows else {}
        self._players.restore(self._update + 1, Held(int(state["asked"]), Episodes(**ahead) if rows else None))
        self._lesson = None

    def vocabulary(self, known: int) -> Vocabulary:
        """The vocabulary that the run's checkpoint was trained with (`kept_tokenizer.kept`)."""
        return kept(self.run_dir or self.prompts.directory, known)

    def close(self) -> None:
        """Ends what is being played."""
        if hasattr(self, "_players"):
            self._player.stop()
            self._players.close()


def _nothing(episodes: int, width: int) -> Judged:
    return Judged(*(np.zeros((episodes, width), np.float32) for _ in Judged._fields))
