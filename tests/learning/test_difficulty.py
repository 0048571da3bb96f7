import torch

from medplan.data.labels import IGNORE
from medplan.learning.difficulty import Difficulty, hard_dice


def test_class_weights_stay_finite_over_1000_steps_with_absent_classes():
    difficulty = Difficulty(4)
    rng = torch.Generator().manual_seed(0)
    for _ in range(1000):
        codes = torch.randint(0, 2, (1, 30), generator=rng)
        predicted = torch.randint(0, 3, (1, 30), generator=rng)
        dice = hard_dice(predicted, codes, 4)
        weights = difficulty(dice)
        assert dice[3] == 0.5
        assert torch.isfinite(weights).all() and (weights >= 0).all()


def test_a_perfect_prediction_has_dice_one_and_unannotated_voxels_do_not_count():
    codes = torch.tensor([[0, 1, 2, IGNORE]])
    torch.testing.assert_close(hard_dice(torch.tensor([[0, 1, 2, 2]]), codes, 3), torch.ones(3))
