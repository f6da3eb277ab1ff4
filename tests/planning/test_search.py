import dataclasses

import jax
import pytest

from hcxjax.planning import search as searching
from hcxjax.planning.pods import Pod
from hcxjax.planning.search import divisors, factorizations, pick, ranked_mfu, search
from hcxjax.planning.topology import PodLayout
from hcxjax.update import abstract_state


def test_factors():
    assert divisors(12) == [1, 2, 3, 4, 6, 12]
    assert list(factorizations(4, 2)) == [(1, 4), (2, 2), (4, 1)]
    assert len(list(factorizations(1024, 4))) == 286  # ways to deal ten twos to four axes
    assert list(factorizations(1, 3)) == [(1, 1, 1)]


@pytest.fixture(scope="module")
def found(step_of, billion):
    """Of 16 chips with little memory."""
    return search(step_of(billion, rows=16, length=4096), [Pod.parse("v5e:4x4")])


def test_every_plan_fits_and_the_best_is_first(found):
    [tried] = found.values()
    assert 0 < len(tried.plans) < tried.tried
    ranks = [plan.roofline.ranking for plan in tried.plans]
    assert ranks == sorted(ranks)
    assert all(plan.memory.total <= searching.FULL * plan.pod.device_memory for plan in tried.plans)
    assert tried.tightest <= min(plan.memory.total for plan in tried.plans)


def test_every_variant_divides_what_it_must(found, billion):
    for plan in next(iter(found.values())).plans:
        sizes = {name.partition(".")[2]: size for name, size in plan.step.bindings().items() if "Layout" in name}
        assert sizes["pipe"] * sizes["data"] * sizes["fsdp"] * sizes["context"] * sizes["tensor"] == 16
        assert billion.embed_dim % sizes["fsdp"] == 0 and billion.num_heads % sizes["tensor"] == 0
        assert 16 % (sizes["data"] * sizes["fsdp"] * plan.step.recipe.accumulate) == 0
        assert 4096 % (1024 * sizes["context"]) == 0


@pytest.mark.parametrize(("heads", "keys", "tensor"), [(12, 3, 4), (12, 6, 4), (12, 2, 4)])
def test_heads_are_dealt_where_the_model_deals_them(step_of, tiny, heads, keys, tensor):
    model = dataclasses.replace(tiny, num_layers=1, num_heads=heads, num_kv_heads=keys, vocab_size=60)
    step = step_of(model, rows=1, data=1, tensor=tensor)
    layout = PodLayout.over(step.layout, jax.devices()[:tensor])
    with layout.active():
        try:
            abstract_state(step.recipe, layout)  # traces the model
            taken = True
        except ValueError as error:
            assert "share no single one" in str(error)
            taken = False
    assert searching._possible(step, {"tensor": tensor}) == taken


def test_stages_are_of_whole_groups_of_layers_and_take_whole_parts_of_the_rows(step_of, billion):
    pod = Pod.parse("v5e:4x4")
    parts = dataclasses.replace(billion, num_layers=16, pipe_repeats=4, pipe_rows=4)
    [tried] = search(step_of(parts, rows=64, length=1024), [pod]).values()
    staged = [plan.step for plan in tried.plans if plan.step.layout.pipe > 1]
    assert {step.layout.pipe for step in staged} == {2, 4}
    assert all(64 // (one.layout.data * one.layout.fsdp) // one.recipe.accumulate % 4 == 0 for one in staged)
    uneven = dataclasses.replace(billion, num_layers=18, pipe_repeats=4)
    assert {site.layout.sizes["pipe"] for site in searching.sites(step_of(uneven, rows=64, length=1024), pod)} == {1}


def test_less_memory_is_bought_with_more_time(step_of, billion, monkeypatch):
    step, pod = step_of(billion, rows=16, length=4096), Pod.parse("v5e:4x4")
    roomy = search(step, [pod])[pod].plans[0]
    monkeypatch.setattr(searching, "FULL", 0.3)
    tight = search(step, [pod])[pod].plans[0]
    assert tight.memory.total < roomy.memory.total and tight.roofline.ranking > roomy.roofline.ranking


def test_one_more_axis_is_one_more_name(step_of, billion, monkeypatch):
    monkeypatch.setattr(searching, "SEARCHED", ("fsdp", "tensor"))
    [tried] = search(step_of(billion, rows=16, length=4096, data=2), [Pod.parse("v5e:4x4")]).values()
    assert {plan.step.layout.data for plan in tried.plans} == {2}
    monkeypatch.setattr(searching, "SEARCHED", ("fsdp", "pipe"))
    [tried] = search(step_of(billion, rows=16, length=4096, data=1), [Pod.parse("v5e:4x4")]).values()
    assert {plan.step.layout.pipe for plan in tried.plans} <= {1, 2}, "18 layers do not divide by 4"


def test_of_pods_that_do_as_well_the_smallest_is_taken(step_of, billion):
    step = step_of(billion, rows=16, length=4096, context=1)
    found = search(step, [Pod.parse(name) for name in ("v5p:2x2x4", "v5e:4x4")])
    best = pick(found)
    top = max(ranked_mfu(tried.plans[0]) for tried in found.values() if tried.plans)
    assert ranked_mfu(best) >= top - searching.NEAR
    smaller = [pod for pod in found if pod.chips * pod.chip.flops < best.pod.chips * best.pod.chip.flops]
    assert all(ranked_mfu(found[pod].plans[0]) < top - searching.NEAR for pod in smaller)


def test_of_pods_in_time_the_smallest_is_taken(step_of, billion):
    found = search(step_of(billion, rows=16, length=4096), [Pod.parse(name) for name in ("v5e:4x4", "v5p:2x2x4")])
    slow, fast = (found[Pod.parse(name)].plans[0] for name in ("v5e:4x4", "v5p:2x2x4"))
    assert slow.days(1e12) > 1.5 * fast.days(1e12)
    assert pick(found, 1e12, slow.days(1e12) * 1.01) is slow
    assert pick(found, 1e12, slow.days(1e12) * 0.99) is fast
    assert pick(found, 1e12, 0.01) is fast, "the fastest where none is in time"


def test_what_fits_nowhere_is_told_with_numbers(step_of, billion):
    huge, pod = dataclasses.replace(billion, num_layers=2000), Pod.parse("v5e:4x4")
    with pytest.raises(ValueError, match=r"fits on none of these pods: v5e:4x4 has 16\.9 GB a device and the least is"):
        pick(search(step_of(huge, rows=16, length=4096), [pod]))
    with pytest.raises(ValueError, match=r"no mesh over pipe, data, fsdp, context, tensor divides v5e:4x4"):
        search(step_of(dataclasses.replace(billion, num_heads=1, num_kv_heads=1), rows=1), [pod])
