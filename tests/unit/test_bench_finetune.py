from __future__ import annotations

import pytest

from greentrain_harness.bench import finetune, finetune_lab
from greentrain_harness.bench._finetune_runs import Setting, method_row


def _run(seconds: float, joules: float | None) -> dict[str, object]:
    epochs = [{"duration_s": seconds, "joules_per_sample": joules, "loss": 1.0} for _ in range(2)]
    return {
        "epochs": epochs, "moved_s": 1.0, "energy_j": joules, "source": "modelled", "accuracy": 0.75,
        "peak_bytes": {"backbone": 4},
    }  # fmt: skip


def test_a_row_is_the_mean_of_the_seeds_and_what_one_lacks_is_unknown() -> None:
    setting = Setting(model="m", epochs=2, seeds=(0, 1), texts=10, tokens=4)
    row = method_row(setting, "full", [_run(2.0, 3.0), _run(4.0, None)])
    assert (row["seconds"], row["accuracy"], row["peak_bytes_backbone"]) == (7.0, 0.75, 4.0)
    assert (row["energy_j"], row["j_per_sample_first"], row["peak_bytes_cached"]) == (None, None, None)


@pytest.mark.parametrize(("main", "option"), [(finetune.main, "--methods"), (finetune_lab.main, "--ways")])
def test_an_unknown_method_is_named_before_anything_runs(
    main: object, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(main)
    with pytest.raises(SystemExit) as ended:
        main([option, "fulll"])
    assert ended.value.code == 2
    assert f"{option}: fulll is none of: full" in capsys.readouterr().err
