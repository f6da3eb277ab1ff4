"""The peer of `python -m tools.bench ppo`: TRL's PPOTrainer with its functions' times taken; needs no jax."""

import os
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tools.bench_ppo_case import PAD, STOP, Case


class Watch:
    """Notes when a trainer's parts begin and end, from outside: its module's functions are wrapped.

    A rollout: `batch_generation`; then what is computed without gradients; then, from the first `forward` with
    gradients on, the updates, up to the next rollout.
    """

    def __init__(self, module: Any, torch: Any):
        self.generating: list[tuple[float, float]] = []
        self.cpu: list[float] = []
        self.training: list[float] = []
        self.answers: list[np.ndarray] = []
        generate, forward = module.batch_generation, module.forward

        def timed_generation(model: Any, queries: Any, *rest: Any) -> Any:
            began = time.perf_counter()
            self.cpu.append(time.process_time())
            found = generate(model, queries, *rest)
            self.generating.append((began, time.perf_counter()))
            self.answers.append(np.asarray(found[0][:, queries.shape[1] :]))
            return found

        def timed_forward(*arguments: Any) -> Any:
            if torch.is_grad_enabled() and len(self.training) < len(self.generating):
                self.training.append(time.perf_counter())
            return forward(*arguments)

        module.batch_generation, module.forward = timed_generation, timed_forward

    def measures(self, case: Case, ended: float) -> dict[str, float]:
        """Medians over the timed rollouts."""
        begins, cpu = [began for began, _ in self.generating] + [ended], [*self.cpu, time.process_time()][case.warm :]
        seconds, parts, lengths, stops = [], [], [], []
        for number in range(case.warm, len(self.generating)):
            began, written = self.generating[number]
            learning, after = self.training[number], begins[number + 1]
            seconds.append(after - began)
            parts.append((written - began, learning - written, after - learning))
            ends_BT = self.answers[number] == STOP
            stopped_B = ends_BT.any(axis=1)
            lengths.append(float(np.where(stopped_B, ends_BT.argmax(axis=1) + 1, ends_BT.shape[1]).mean()))
            stops.append(float(stopped_B.mean()))
        generate_s, score_s, train_s = (statistics.median(part) for part in zip(*parts, strict=True))
        return {
            "episodes_per_s": case.episodes / statistics.median(seconds),
            "tokens_per_s": statistics.median(
                length * case.episodes / one for length, one in zip(lengths, seconds, strict=True)
            ),
            "generate_s": generate_s,
            "score_s": score_s,
            "train_s": train_s,
            "cores": statistics.median(
                (after - before) / one for before, after, one in zip(cpu, cpu[1:], seconds, strict=False)
            ),
            "length": statistics.median(lengths),
            "stop_rate": statistics.median(stops),
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }


def measure(case: Case, folder: Path) -> dict[str, float]:
    """Rollouts of TRL's PPO, fp32, no gradient checkpointing, the whole minibatch at once, all cores."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    import datasets
    import torch
    import transformers
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(case.seed)
    policy, reference = (_policy(transformers, torch, case, folder) for _ in range(2))
    value, reward = (_scalar(transformers, torch, case, folder) for _ in range(2))
    rows = [{"input_ids": prompt} for prompt in case.prompts]
    watch = Watch(ppo_trainer, torch)
    with tempfile.TemporaryDirectory() as output:
        trainer = PPOTrainer(
            args=PPOConfig(
                output_dir=output,
                bf16=False,
                use_cpu=not torch.cuda.is_available(),
                gradient_checkpointing=False,
                per_device_train_batch_size=case.episodes,
                gradient_accumulation_steps=1,
                local_rollout_forward_batch_size=case.episodes,
                num_ppo_epochs=case.epochs,
                num_mini_batches=1,
                total_episodes=(case.warm + case.rollouts) * case.episodes,
                response_length=case.new_tokens,
                stop_token_id=STOP,
                temperature=case.temperature,
                kl_coef=0.04,
                missing_eos_penalty=1.0,
                num_sample_generations=0,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                logging_steps=1_000_000,
            ),
            processing_class=_tokenizer(transformers, case),
            model=policy,
            ref_model=reference,
            reward_model=reward,
            value_model=value,
            train_dataset=datasets.Dataset.from_list(rows),
            eval_dataset=datasets.Dataset.from_list(rows),
        )
        trainer.train()
        return watch.measures(case, time.perf_counter())


def _policy(transformers: Any, torch: Any, case: Case, folder: Path) -> Any:
    llama = transformers.AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    with torch.no_grad():
        table = llama.get_input_embeddings().weight
        table.copy_(torch.from_numpy(case.steered(table.numpy())))
    llama.config.pad_token_id = llama.generation_config.pad_token_id = PAD
    llama.generation_config.bos_token_id = None
    return llama


def _scalar(transformers: Any, torch: Any, case: Case, folder: Path) -> Any:
    return transformers.AutoModelForSequenceClassification.from_pretrained(
        folder / "model", dtype=torch.float32, num_labels=1, pad_token_id=PAD
    )


def _tokenizer(transformers: Any, case: Case) -> Any:
    import tokenizers

    known = {f"t{token}": token for token in range(case.shape["vocab_size"])}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(known, unk_token="t2"))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token=f"t{PAD}", eos_token=f"t{STOP}", padding_side="left"
    )
