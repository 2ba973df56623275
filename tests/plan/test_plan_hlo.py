"""Modules written by hand, in the forms that the TPU compiler gives, and their costs worked out by hand."""

import pytest

from pixelis_jax.plan import costs, hlo, loops

LOOP = """\
HloModule jit_step, is_scheduled=true, num_partitions=8

%add_one (counter: s32[]) -> s32[] {{
  %counter = s32[]{{:T(128)}} parameter(0)
  %one = s32[]{{:T(128)}} constant({step})
  ROOT %sum = s32[]{{:T(128)}} add(%counter, %one)
}}

%body (state: (s32[], s32[], bf16[64,32])) -> (s32[], s32[], bf16[64,32]) {{
  %state = (s32[]{{:T(128)}}, s32[]{{:T(128)}}, bf16[64,32]{{1,0:T(8,128)(2,1)}}) parameter(0)
  %turn = s32[]{{:T(128)}} get-tuple-element(%state), index=0
  %limit = s32[]{{:T(128)}} get-tuple-element(%state), index=1
  %x = bf16[64,32]{{1,0:T(8,128)(2,1)}} get-tuple-element(%state), index=2
  %next = s32[]{{:T(128)}} fusion(%turn), kind=kLoop, calls=%add_one, metadata={{op_name="jit(step)/while (x)"}}
  %y = bf16[64,32]{{1,0:T(8,128)(2,1)}} negate(%x)
  ROOT %again = (s32[]{{:T(128)}}, s32[]{{:T(128)}}, bf16[64,32]{{1,0:T(8,128)(2,1)}}) tuple(%next, %limit, %y)
}}

%condition (state.1: (s32[], s32[], bf16[64,32])) -> pred[] {{
  %state.1 = (s32[]{{:T(128)}}, s32[]{{:T(128)}}, bf16[64,32]{{1,0:T(8,128)(2,1)}}) parameter(0)
  %turn.1 = s32[]{{:T(128)}} get-tuple-element(%state.1), index=0
  %limit.1 = s32[]{{:T(128)}} get-tuple-element(%state.1), index=1
  {test}
}}

ENTRY %main (x.1: bf16[64,32]) -> (s32[], s32[], bf16[64,32]) {{
  %x.1 = bf16[64,32]{{1,0:T(8,128)(2,1)}} parameter(0)
  %start = s32[]{{:T(128)}} constant({start})
  %end = s32[]{{:T(128)}} constant({end})
  %first = (s32[]{{:T(128)}}, /*index=1*/s32[]{{:T(128)}}, bf16[64,32]{{1,0:T(8,128)(2,1)}}) tuple(%start, %end, %x.1)
  ROOT %loop = (s32[], s32[], bf16[64,32]) while(%first), condition=%condition, body=%body{known}
}}
"""
COUNTS = "ROOT %less = pred[]{{:T(512)}} compare(%turn.1, %limit.1), direction={}"


def turns(*, start, end, step, direction, known=""):
    text = LOOP.format(start=start, end=end, step=step, test=COUNTS.format(direction), known=known)
    runs, unknown = loops.executions(hlo.parse(text))
    assert not unknown
    return {run.computation.name: run.times for run in runs}.get("body", 0)


@pytest.mark.parametrize(
    ("start", "end", "step", "direction", "count"),
    [
        (0, 36, 1, "LT", 36),
        (3, 36, 1, "LT", 33),
        (0, 36, 5, "LT", 8),
        (0, 36, 5, "LE", 8),
        (0, 35, 5, "LE", 8),
        (36, 0, -1, "GT", 36),
        (35, 0, -5, "GE", 8),
        (0, 36, 4, "NE", 9),
        (36, 0, -4, "NE", 9),
        (5, 5, 1, "LT", 0),
        (7, 5, 1, "LT", 0),
        (7, 5, -1, "LT", 0),
        (5, 5, 1, "LE", 1),
    ],
)
def test_a_loop_that_counts(start, end, step, direction, count):
    assert turns(start=start, end=end, step=step, direction=direction) == count


def test_what_the_compiler_knows_goes_first():
    assert turns(start=0, end=36, step=1, direction="LT", known=', backend_config={"known_trip_count":{"n":"7"}}') == 7


def test_a_loop_that_depends_on_data_counts_once_and_is_named():
    test = 'ROOT %data = pred[] custom-call(%state.1), custom_call_target="Ask"'
    module = hlo.parse(LOOP.format(start=0, end=36, step=1, test=test, known=""))
    runs, unknown = loops.executions(module)
    assert unknown == ["loop"] and [(run.computation.name, run.times) for run in runs] == [("main", 1), ("body", 1)]
    once, often = costs.measure(module), costs.measure(module, turns=(32,))
    assert once.unknown_loops == 1 and once.hbm_bytes > 0 and often.hbm_bytes == 32 * once.hbm_bytes


def test_a_counter_that_never_arrives_is_unknown():
    module = hlo.parse(LOOP.format(start=0, end=36, step=-1, test=COUNTS.format("LT"), known=""))
    assert loops.executions(module)[1] == ["loop"]


def test_the_body_of_a_loop_costs_its_turns():
    text = LOOP.format(start=0, end=36, step=1, test=COUNTS.format("LT"), known="")
    # An array read and one written a turn, 64 x 32 x 2 bytes; the counter is 4 + 4.
    assert costs.measure(hlo.parse(text)).hbm_bytes == 36 * (2 * 64 * 32 * 2 + 8)


CHIPS_TALK = """\
HloModule jit_step, num_partitions=8

%all-reduce-scatter (input: f32[64,4]) -> f32[16,4] {
  %input = f32[64,4]{1,0:T(8,128)} parameter(0)
  %all-reduce.1 = f32[64,4]{1,0:T(8,128)} all-reduce(%input), channel_id=2, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %zero = s32[]{:T(128)} constant(0)
  ROOT %dynamic-slice.3 = f32[16,4]{1,0:T(8,128)} dynamic-slice(%all-reduce.1, %zero, %zero), dynamic_slice_sizes={16,4}
}

%begin (shard: bf16[8,16]) -> (bf16[8,16], bf16[64,16], u32[]) {
  %shard = bf16[8,16]{1,0} parameter(0)
  %all-gather.1 = bf16[64,16]{1,0:T(8,128)(2,1)S(1)} all-gather(%shard), channel_id=9, replica_groups=mesh['a'=1,'b'=8] {'b'}, dimensions={0}
  ROOT %start = (bf16[8,16]{1,0}, bf16[64,16]{1,0:S(1)}, u32[]{:S(2)}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%finish (shard.1: bf16[8,16], whole: bf16[64,16]) -> bf16[64,16] {
  %shard.1 = bf16[8,16]{1,0} parameter(0)
  %whole = bf16[64,16]{1,0:S(1)} parameter(1)
  %all-gather.2 = bf16[64,16]{1,0:S(1)} all-gather(%shard.1), channel_id=9, replica_groups=mesh['a'=1,'b'=8] {'b'}, dimensions={0}
  ROOT %done = bf16[64,16]{1,0:S(1)} custom-call(%shard.1, %whole, %all-gather.2), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (x: f32[64,4], w: bf16[8,16]) -> bf16[64,16] {
  %x = f32[64,4]{1,0:T(8,128)} parameter(0)
  %w = bf16[8,16]{1,0} parameter(1)
  %fusion = f32[16,4]{1,0:T(8,128)} fusion(%x), kind=kCustom, calls=%all-reduce-scatter
  %sum = (f32[16,4]{1,0}, f32[16,4]{1,0}) all-reduce(%fusion, %fusion), channel_id=3, replica_groups=[4,2]<=[8], to_apply=%add
  %send = (f32[16,4]{1,0}, f32[16,4]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%fusion), channel_id=4, source_target_pairs={{0,1},{1,0}}
  %sent = f32[16,4]{1,0} collective-permute-done(%send)
  %swap = f32[16,4]{1,0} all-to-all(%sent), channel_id=5, replica_groups=mesh['a'=2,'b'=4], device_ids=([2,4]T(1,0)) {'a','b':(2)2}, dimensions={0}
  %begun = (bf16[8,16]{1,0}, bf16[64,16]{1,0:S(1)}, u32[]{:S(2)}) fusion(%w), kind=kCustom, calls=%begin
  %first = bf16[8,16]{1,0} get-tuple-element(%begun), index=0
  %second = bf16[64,16]{1,0:S(1)} get-tuple-element(%begun), index=1
  ROOT %result = bf16[64,16]{1,0:S(1)} fusion(%first, %second), kind=kCustom, calls=%finish
}
"""  # noqa: E501


def test_collectives_by_hand():
    found = costs.measure(hlo.parse(CHIPS_TALK)).collectives
    # 64 x 4 floats over 4 chips: three quarters leave each.
    assert found["reduce-scatter"] == costs.Traffic(count=1, bytes=1024, sent=768)
    # A pair of arrays of 256 bytes over 2 chips: twice half of them, once to add and once to hand out.
    assert found["all-reduce"] == costs.Traffic(count=1, bytes=512, sent=512)
    assert found["collective-permute"] == costs.Traffic(count=1, bytes=256, sent=256)
    # Over all of one axis and half of the other: 2 x 2 chips.
    assert found["all-to-all"] == costs.Traffic(count=1, bytes=256, sent=192)
    # Spread over two fusions, and still one: 64 x 16 x 2 bytes over 8 chips.
    assert found["all-gather"] == costs.Traffic(count=1, bytes=2048, sent=1792)


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", 2),
        ("replica_groups={}", 8),
        ("channel_id=1", 8),
        ("replica_groups=[2,4]<=[8]", 4),
        ("replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}", 4),
        ("replica_groups=mesh['x'=2,'y'=4] {'x'}, dimensions={1}", 2),
        ("replica_groups=mesh['x'=2,'y'=4] {'x','y'}", 8),
        ("replica_groups=mesh['x'=2,'y'=4], device_ids=([4,2]T(1,0)) {'y'}, use_global_device_ids=true", 4),
        ("replica_groups=mesh['x'=2,'y'=4] {'y':(2)2}", 2),
    ],
)
def test_groups_in_every_form(groups, size):
    assert costs.group_size(f", {groups}, metadata={{}}", partitions=8) == size


def test_groups_of_an_unknown_form_are_refused():
    with pytest.raises(ValueError, match="cannot read the groups"):
        costs.group_size("replica_groups=mesh['x'=2], dimensions={0}", partitions=2)


STACK = """\
HloModule jit_step

%slice (stack: f32[36,8,8], layer: s32[]) -> f32[1,8,8] {
  %stack = f32[36,8,8]{2,1,0} parameter(0)
  %layer = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %taken = f32[1,8,8]{2,1,0:S(1)} dynamic-slice(%stack, %layer, %zero, %zero), dynamic_slice_sizes={1,8,8}
}

%put (stack.1: f32[36,8,8], layer.1: s32[], new: f32[1,8,8]) -> f32[36,8,8] {
  %stack.1 = f32[36,8,8]{2,1,0} parameter(0)
  %layer.1 = s32[] parameter(1)
  %new = f32[1,8,8]{2,1,0:S(1)} parameter(2)
  %zero.1 = s32[] constant(0)
  ROOT %written = f32[36,8,8]{2,1,0} dynamic-update-slice(%stack.1, %new, %layer.1, %zero.1, %zero.1)
}

ENTRY %main (weights: f32[36,8,8], which: s32[]) -> f32[36,8,8] {
  %weights = f32[36,8,8]{2,1,0} parameter(0)
  %which = s32[] parameter(1)
  %one = f32[1,8,8]{2,1,0:S(1)} fusion(%weights, %which), kind=kLoop, calls=%slice
  %fetch = (f32[36,8,8]{2,1,0:S(1)}, f32[36,8,8]{2,1,0}, u32[]{:S(2)}) copy-start(%weights)
  %fetched = f32[36,8,8]{2,1,0:S(1)} copy-done(%fetch)
  %cut = (f32[36,8,8]{2,1,0}, f32[9,8,8]{2,1,0:S(1)}, s32[]{:S(4)}) slice-start(%weights), slice={[0:9], [0:8], [0:8]}
  %done = f32[9,8,8]{2,1,0:S(1)} slice-done(%cut)
  ROOT %updated = f32[36,8,8]{2,1,0} fusion(%weights, %which, %one), kind=kLoop, calls=%put
}
"""


def test_a_scatter_into_a_cache_writes_what_is_new():
    put = "ROOT %written = f32[36,8,8]{2,1,0} scatter(%stack.1, %layer.1, %new), to_apply=%replace"
    text = "\n".join(f"  {put}" if "%written" in line else line for line in STACK.splitlines())
    assert costs.measure(hlo.parse(text)).hbm_bytes == costs.measure(hlo.parse(STACK)).hbm_bytes


def test_a_layer_of_a_stack_is_read_and_written_alone_and_core_memory_is_free():
    # One layer read (with its index), all copied to the core once, nine of them again, one layer written (with its index).
    assert costs.measure(hlo.parse(STACK)).hbm_bytes == (256 + 4) + (36 + 9) * 256 + (256 + 4)


NESTED = """\
HloModule jit_step

%turned (w: bf16[64,32]) -> bf16[32,64] {
  %w = bf16[64,32]{1,0} parameter(0)
  ROOT %t = bf16[32,64]{0,1} bitcast(%w)
}

%product (x: bf16[8,64], w.1: bf16[64,32]) -> bf16[8,32] {
  %x = bf16[8,64]{1,0:S(1)} parameter(0)
  %w.1 = bf16[64,32]{1,0} parameter(1)
  %inner = bf16[32,64]{0,1} fusion(%w.1), kind=kLoop, calls=%turned
  ROOT %y = bf16[8,32]{1,0:S(1)} convolution(%x, %inner), dim_labels=bf_oi->bf
}

ENTRY %main (x.1: bf16[8,64], w.2: bf16[64,32]) -> bf16[8,32] {
  %x.1 = bf16[8,64]{1,0:S(1)} parameter(0)
  %w.2 = bf16[64,32]{1,0} parameter(1)
  ROOT %z = bf16[8,32]{1,0:S(1)} fusion(%x.1, %w.2), kind=kOutput, calls=%product
}
"""


def test_a_weight_is_read_through_fusions_of_fusions():
    found = costs.measure(hlo.parse(NESTED))
    assert found.hbm_bytes == 64 * 32 * 2 and found.flops == 2 * 8 * 64 * 32


PRODUCTS = """\
HloModule jit_step

ENTRY %main (a: bf16[8,16,32], b: bf16[8,32,64], c: bf16[128,256], d: bf16[256,512]) -> bf16[8,16,64] {{
  %a = bf16[8,16,32]{{2,1,0}} parameter(0)
  %b = bf16[8,32,64]{{2,1,0}} parameter(1)
  %c = bf16[128,256]{{1,0}} parameter(2)
  %d = bf16[256,512]{{1,0}} parameter(3)
  %p = {product}
  ROOT %r = bf16[8,16,64]{{2,1,0}} bitcast(%p)
}}
"""


@pytest.mark.parametrize(
    ("product", "flops"),
    [
        (
            "bf16[8,16,64] dot(%a, %b), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_contracting_dims={1}",
            2 * 8 * 16 * 32 * 64,
        ),
        ("bf16[128,512] convolution(%c, %d), dim_labels=bf_io->bf", 2 * 128 * 256 * 512),
        # The forms in which the TPU compiler writes eight products of [16, 32] and [32, 64].
        (
            "bf16[8,16,64] convolution(%a, %b), window={size=8 stride=7 lhs_dilate=8}, dim_labels=0bf_0io->0bf",
            2 * 8 * 16 * 32 * 64,
        ),
        # A true convolution: 8 places, a kernel of 3, both ends padded: 8 + 7 + 7 pairs.
        (
            "bf16[8,16,64] convolution(%a, %k), window={size=3 pad=1_1}, dim_labels=0bf_0io->0bf",
            2 * 16 * 32 * 64 * (8 + 7 + 7),
        ),
    ],
)
def test_products_by_hand(product, flops):
    text = PRODUCTS.format(product=product).replace("%b = bf16[8", "%k = bf16[3,32,64]{2,1,0} constant({...})\n  %b = bf16[8")
    assert costs.measure(hlo.parse(text)).flops == flops


def test_what_is_no_module_is_refused():
    with pytest.raises(ValueError, match="no entry computation"):
        hlo.parse("module @jit_f {}")
