"""Small files in the layouts of Gale et al., with their column names and quirks; the numbers are made up."""

from __future__ import annotations

from pathlib import Path

THRESHOLDS = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0)

MAGNITUDE = "Sparsity,begin,end,freq,label smoothing,accuracy"
RANDOM = "Target Sparsity,begin,end,freq,label smoothing,accuracy"
DROPOUT = "DKL loss begin,DKL loss saturate,DKL loss coeff,label_smoothing,global sparsity,Accuracy"
L0 = "initial_log_alpha,l0_norm_weight,label_smoothing,weight_decay,global_sparsity,accuracy"
BASELINES = "Accuracy,Training Steps,Batch Size"
LOTTERY = "begin,end,freq,label smoothing,sparsity,accuracy"
SCRATCH = "sparsity,time multiplier,,begin,end,freq,label smoothing,accuracy"
SCRATCH_NAMED = SCRATCH.replace("multiplier,,", "multiplier,init method,")
SCRATCH_WIDE = (
    "sparsity,time multiplier,init method,begin,end,freq,label smoothing,Run 1,Run 2,Run 3,Run 4,Run 5,Run 6,Run 7,Run 8,Run 9"
)

PRUNING_COLUMNS = "Sparsity,begin_pruning_step,end_pruning_step,pruning_frequency,regularization,threshold_decay"
TRANSFORMER_PRUNING = f"Tensor2Tensor HParams,MOSES BLEU,{PRUNING_COLUMNS}"
TRANSFORMER_LOTTERY = f"HParams,MOSES BLEU,{PRUNING_COLUMNS}"
TRANSFORMER_L0 = (
    "Tensor2Tensor HParams,MOSES BLEU,Sparsity,l0_norm_weight,l0_norm_weight_fn,dkl_weight_start,dkl_weight_diff,regularization"
)
TRANSFORMER_DROPOUT = (
    "Tensor2Tensor Hparams,dkl_weight,dkl_weight_fn,dkl_weight_start,dkl_weight_diff,regularization,"
    + ",".join(f"MOSES BLEU:{threshold},Sparsity:{threshold}" for threshold in THRESHOLDS)
)
TRANSFORMER_BASELINES = "Tensor2Tensor HParams,MOSES BLEU,Training Steps,Batch Size,Dataset"

_PRUNED = "sparse_transformer_magnitude_pruning"

ALL: dict[str, tuple[str, ...]] = {
    "rn50_baselines.csv": (BASELINES, "76.7,128000,1024", "76.9,128000,1024", "76.7,128000,1024"),
    "rn50_magnitude_pruning.csv": (MAGNITUDE, "0.5,20000,76000,2000,0.1,0.7561", "0.9,8000,68000,4000,0,0.7391"),
    "rn50_random_pruning.csv": (RANDOM, "0.5,0,76000,4000,0.1,0.7401"),
    "rn50_variational_dropout.csv": (DROPOUT, "8000,76000,0.00000780538368534,0.1,0.989484429359,0.5988"),
    "rn50_l0_regularization.csv": (L0, "4.6,0.0032,0.0001010051836,0.1,0.2199723721,0.0053", "2.197,0.0032,0,0,0.3,0.001"),
    "rn50_lottery_ticket.csv": (LOTTERY, "40000,100000,2000,0.1,0.5,0.7457", "40000,100000,2000,0.1,0.5,0.7462"),
    "rn50_scratch_lr_constant_decay.csv": (
        SCRATCH,
        "0.5,2,sparse,20000,40000,4000,0.1,0.725",
        "0.5,2,baseline,20000,40000,4000,0.1,0.709",
        "0.5,1,baseline,20000,40000,4000,0.1,0.701",
    ),
    "rn50_scratch_lr_continual_decay.csv": (SCRATCH_NAMED, "0.7,2,sparse,8000,40000,8000,0.1,0.6688"),
    "rn50_scratch_lr_scaled.csv": (SCRATCH_WIDE, "0.5,1,baseline,4,10,2,0.1,.71,.72,.73,.74,.75,.76,.77,.78,.79"),
    "transformer_baselines.csv": (TRANSFORMER_BASELINES, "transformer_base,27.13,500000,2048,translate_ende_wmt32k_packed"),
    "transformer_magnitude_pruning.csv": (
        TRANSFORMER_PRUNING.replace("MOSES", "Moses"),
        f"{_PRUNED},25.86,0.600001454353,0,500000,1000,dropout+label_smoothing,0",
        f"{_PRUNED},0.4,0.499499440193,0,500000,1000,none,0",
    ),
    "transformer_random_pruning.csv": (
        TRANSFORMER_PRUNING,
        "sparse_transformer_random_pruning,24.15,0.499999940395,200000,300000,10000,label_smoothing,0",
    ),
    "transformer_scratche.csv": (TRANSFORMER_PRUNING, f"{_PRUNED},24.5,0.5,100000,400000,10000,dropout+label_smoothing,0"),
    "transformer_scratchb_augmented_init.csv": (
        TRANSFORMER_PRUNING,
        f"{_PRUNED},24.45,0.5,100000,400000,10000,dropout+label_smoothing,0",
    ),
    "transformer_lottery_ticket.csv": (
        TRANSFORMER_LOTTERY,
        f"{_PRUNED},23.22,0.700000524521,100000,300000,1000,dropout+label_smoothing,0",
        f"{_PRUNED},22.78,0.700000405312,100000,300000,1000,dropout+label_smoothing,0",
    ),
    "transformer_l0_regularization.csv": (
        TRANSFORMER_L0,
        "sparse_transformer_l0_regularization,24.17,0.753008127213,2.2222222222222222e-7,linear,0,100000,none",
    ),
    "transformer_variational_dropout.csv": (
        TRANSFORMER_DROPOUT,
        "sparse_transformer_variational_dropout,2.22222222222e-7,cubic,300000,100000,none,"
        + ",".join(f"{10 + index},{0.99 - 0.05 * index:.2f}" for index in range(11)),
    ),
}


def write_file(directory: Path, name: str, *lines: str) -> Path:
    """Write a result file; without `lines`, the one of `ALL`."""
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text("\n".join(lines or ALL[name]) + "\n", encoding="utf-8")
    return path


def write_all(directory: Path, beginning: str = "") -> list[Path]:
    """Write every file of `ALL` whose name has a beginning."""
    return [write_file(directory, name) for name in ALL if name.startswith(beginning)]
