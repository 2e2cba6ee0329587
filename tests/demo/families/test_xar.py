"""Training xAR computes for all clusters at once what a plan computes one by one."""

import torch

from demo.families import xar
from disa.exporter.families import xar as xar_graphs

from .weights import IMAGES, random_latents, randomise


@torch.no_grad()
def test_xar_sees_what_the_clusters_of_a_plan_see() -> None:
    model = xar.build()
    randomise(model)
    training = xar.Training(model, random_latents())
    x, noisy = torch.randn(2, IMAGES, 64, 4)
    time, labels = torch.rand(IMAGES, 4), torch.tensor([1, 2, 10])
    found = training.velocity(torch.cat([x[:, :48], noisy], 1), time, labels)
    stages = (xar_graphs.TimestepModulation, xar_graphs.Prefill, xar_graphs.StepNetwork)
    modulate, prefill, denoise = (stage(model) for stage in stages)
    heads, width = 4, 32
    caches = [torch.zeros(2 * depth, 1, IMAGES, heads, 0, width) for depth in (2, 3)]
    for cluster in range(4):
        places = torch.arange(16 * cluster, 16 * cluster + 16)
        noise = noisy[:, places].transpose(0, 1)
        velocity = denoise(
            noise,
            places,
            modulate(1000 * time[:, cluster], labels)[None],
            *caches,
        )
        torch.testing.assert_close(velocity[0].transpose(0, 1), found[:, places], rtol=0, atol=1e-4)
        still = modulate(torch.zeros(IMAGES), labels)[None]
        caches = list(prefill(x[:, places].transpose(0, 1), places, still, *caches))


def test_the_checkpoint_gives_the_model_back() -> None:
    model = xar.build()
    randomise(model)
    content = xar.checkpoint(model.state_dict())
    args = vars(content["args"])
    config = xar_graphs.configure(content["model_ema"], None, args)
    assert config == xar.CONFIG
    assert (config.img_size, config.cluster_tokens) == (32, 16)
    again = xar_graphs.build(content["model_ema"], config)
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key
