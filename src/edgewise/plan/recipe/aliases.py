"""Names that other tools have for a recipe's keys. They are answered with the key, and never accepted for it."""

from __future__ import annotations

from collections.abc import Mapping

_SAME: Mapping[str, str] = {
    "training.lr": "learning_rate learning_rates client_lr local_lr base_lr",
    "training.local_epochs": "epochs epoch num_epochs n_epochs num_train_epochs local_epoch num_local_epochs "
    "client_epochs",
    "training.local_steps": "max_steps steps num_steps n_steps train_steps local_iterations num_local_steps",
    "training.batch": "batch_size batchsize train_batch_size per_device_train_batch_size local_batch_size",
    "training.accumulate": "gradient_accumulation_steps gradient_accumulation grad_accum accumulation_steps",
    "training.clip_grad": "max_grad_norm grad_clip gradient_clip gradient_clipping grad_norm",
    "training.schedule": "lr_schedule lr_scheduler lr_scheduler_type scheduler",
    "training.weight_decay": "wd decay",
    "training.optimizer": "optim optimiser local_optimizer client_optimizer",
    "round.rounds": "num_rounds n_rounds num_server_rounds server_rounds communication_rounds comm_rounds "
    "global_rounds",
    "round.cohort": "clients_per_round num_clients_per_round devices_per_round cohort_size fraction_fit fraction_train "
    "client_fraction clients num_clients n_clients",
    "round.minimum": "min_clients min_fit_clients min_available_clients min_devices",
    "round.deadline_s": "timeout timeout_s round_timeout deadline",
    "round.patience": "early_stopping early_stopping_patience",
    "data.devices": "clients num_clients n_clients client_count num_devices n_devices num_partitions",
    "data.path": "data_path data_dir dataset_path train_file",
    "data.source": "dataset_name dataset_type",
    "data.packing": "pack packed sample_packing",
    "data.answers": "assistant_only_loss completion_only_loss train_on_responses_only",
    "data.messages": "conversations chat_column messages_column messages_field",
    "data.text": "text_column text_field dataset_text_field",
    "data.owner": "client_column user_column client_id user_id partition_by",
    "data.alpha": "dirichlet_alpha",
    "data.holdout": "test_size val_size test_split validation_split holdout_fraction",
    "data.sequence_len": "seq_len seq_length sequence_length max_length max_seq_length max_seq_len block_size "
    "context_length",
    "model.base": "model_name model_path model_id model_name_or_path base_model pretrained_model",
    "model.quantize": "load_in_4bit load_in_8bit quantization quantization_config bnb_4bit_quant_type",
    "model.precision": "dtype torch_dtype bf16 fp16 mixed_precision",
    "trainable.rank": "r lora_r lora_rank lora_dim",
    "trainable.alpha": "lora_alpha",
    "trainable.scaling": "use_rslora rslora",
    "trainable.targets": "target_modules lora_targets lora_target_modules",
    "dp.noise_multiplier": "sigma noise_scale noise_mult",
    "dp.epsilon": "eps target_epsilon privacy_budget",
    "dp.delta": "target_delta",
    "dp.clip_l2": "l2_norm_clip clipping_norm clip_norm max_grad_norm max_norm clipping_threshold",
    "dp.sample_rate": "sampling_rate sampling_probability",
    "trust.malicious_fraction": "corrupt_fraction malicious",
    "trust.dropout_fraction": "dropout_rate",
    "eval.every": "eval_every eval_interval eval_steps evaluate_every eval_frequency",
    "simulation.workers": "num_workers",
    "simulation.worker_cpus": "num_cpus",
    "simulation.worker_gpus": "num_gpus",
    "seed": "random_seed rng_seed",
    "name": "run_name experiment_name",
    "training": "train trainer",
    "trainable": "lora peft adapter adapters",
    "data": "dataset datasets",
    "round": "federated federation fl",
    "dp": "differential_privacy dp_sgd",
    "eval": "evaluation",
    "merge": "aggregation aggregator secagg secure_aggregation",
    "stage": "compression compressor codecs stages",
}

# Keys that stand elsewhere. A key of [trust] stands once, for masks and noise alike.
MOVED = {
    "dp.corrupt": "trust.malicious_fraction",
    "merge.corrupt": "trust.malicious_fraction",
    "merge.dropout": "trust.dropout_fraction",
    "merge.server": "trust.server",
    "model.source": "model.base",
}

# Names of parts' own keys.
_SAME_IN_PARTS: Mapping[str, str] = {
    "l2": "max_norm norm clip_norm clip_l2 c",
    "fraction": "k ratio sparsity density percent",
    "bits": "num_bits n_bits nbits",
    "lr": "learning_rate server_lr server_learning_rate eta",
    "mu": "proximal_mu prox_mu",
    "momentum": "server_momentum",
    "beta1": "beta_1",
    "beta2": "beta_2",
    "z": "noise_multiplier sigma",
}


def _keys_by_alias(same: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Map each name of another tool to the keys it may mean."""
    found: dict[str, tuple[str, ...]] = {}
    for key, names in same.items():
        for name in names.split():
            found[name] = (*found.get(name, ()), key)
    return found


# Another tool's name -> the keys that may be meant.
ALIASES = _keys_by_alias(_SAME)
PART_ALIASES = _keys_by_alias(_SAME_IN_PARTS)
