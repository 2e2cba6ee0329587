"""Training FlowAR computes for all scales at once what a plan computes one by one."""

import torch
import torch.nn.functional as F  # noqa: N812

from demo.families import flowar
from disa.exporter.families import flowar as flowar_graphs
from disa.exporter.layers.flow_head import StepNetwork, TimestepTables

from .weights import IMAGES, random_latents, randomise


@torch.no_grad()
def test_flowar_sees_what_the_scales_of_a_plan_see() -> None:
    model = flowar.build()
    randomise(model)
    training = flowar.Training(model, random_latents())
    maps = [torch.randn(IMAGES, 4, side, side) for side in flowar.SCALES]
    labels, time = torch.tensor([1, 2, 10]), torch.rand(IMAGES, 4)
    noisy = torch.randn(IMAGES, 85, 4)
    known = torch.cat([flowar.tokens(flowar.resized(coarse)) for coarse in maps[:-1]], 1)
    found = training.velocity(noisy, time, training.condition(known, labels))
    backbone, head = flowar_graphs.Backbone(model), model.flownet
    step = StepNetwork(head, flowar_graphs.scale_rotary(flowar.CONFIG, flowar_graphs.HEAD_DIM))
    modulation = flowar_graphs.ClassModulation(model)(labels[None])
    caches = [torch.zeros(2 * depth, 1, IMAGES, 4, 0, 32) for depth in (1, 2)]
    previous, start = torch.zeros(1, IMAGES, 4), 0
    for scale, side in enumerate(flowar.SCALES):
        places = torch.arange(start, start + side * side)
        condition, *caches = backbone(previous, places, labels[None], modulation, *caches)
        velocity = step(
            noisy[:, places].transpose(0, 1),
            condition,
            places,
            torch.arange(IMAGES),
            TimestepTables(head)(1000 * time[:, scale]),
        )
        torch.testing.assert_close(velocity[0].transpose(0, 1), found[:, places], rtol=0, atol=1e-4)
        previous, start = flowar.tokens(maps[scale]).transpose(0, 1), start + side * side


def test_the_checkpoint_gives_the_model_back() -> None:
    model = flowar.build()
    randomise(model)
    content = flowar.checkpoint(model.state_dict())
    args = vars(content["args"])
    config = flowar_graphs.configure(content["model_ema"], None, args)
    assert config == flowar.CONFIG
    assert (config.img_size, config.scales) == (32, (1, 2, 4, 8))
    again = flowar_graphs.build(content["model_ema"], config)
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key


def test_a_map_is_resized_through_the_whole_grid() -> None:
    torch.manual_seed(0)
    coarse = torch.randn(2, 4, 2, 2)
    whole = F.interpolate(coarse, (8, 8), mode="bicubic")
    torch.testing.assert_close(flowar.resized(coarse), F.avg_pool2d(whole, 2))
