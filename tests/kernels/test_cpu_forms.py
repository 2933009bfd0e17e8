"""Every further form of the C kernels that this processor has, by the tests of the best one.

The other files run on the best form, which HALFBYTE_ISA may name; here each of the others goes
through all of their functions with weights and sizes drawn afresh.
"""

from __future__ import annotations

import random

import pytest
import test_cpu_attention as attention
import test_cpu_calibrator as calibrator
import test_cpu_compact as compact
import test_cpu_draw as draw
import test_cpu_elementwise as elementwise
import test_cpu_linear as linear
import test_cpu_pack as packing
import test_cpu_quantized_inputs as inputs
import test_cpu_rounded as rounded
import torch
from cpu_support import ARM, Kind, all_kinds, library, needs_compiler, using
from seeds import fresh_seed

from halfbyte.kernels.cpu.forms import FORMS, Form, available_forms, chosen_forms
from halfbyte.kernels.formats.code_tables import IQ4_NL

OTHERS = [] if ARM or not chosen_forms() else available_forms()[1:]
LANES = {"amx": 16, "vnni": 16, "avx512": 16, "avxvnni": 8, "avx2": 8}
LANES |= {"i8mm": 4, "dotprod": 4, "neon": 4, "plain": 4}

pytestmark = needs_compiler
each_form = pytest.mark.parametrize("form", OTHERS, ids=[form.name for form in OTHERS])


def some_kinds() -> list[Kind]:
    """One kind of weights of each sort that the kernels tell apart."""
    kinds = all_kinds()
    random.Random(fresh_seed()).shuffle(kinds)
    own: dict[object, Kind] = {}
    for kind in kinds:
        own.setdefault((kind.dtype, kind.zero, kind.bits > 4, kind.compact), kind)
    return list(own.values())


def test_every_form_has_its_width() -> None:
    assert set(LANES) == {form.name for form in FORMS}
    for form in available_forms():
        with using(form):
            assert library().form == (ARM or form.name)
            assert library().lanes == (4 if ARM else LANES[form.name])


@each_form
def test_products(form: Form) -> None:
    with using(form):
        for kind in some_kinds():
            linear.test_linear_of_every_kind(kind)
            linear.test_embed_gives_the_rows_of_the_matrix(kind)
        for kind in some_kinds()[:4]:
            linear.test_exact_bits_do_not_depend_on_the_batch_or_threads(kind)
            linear.test_bias_and_adding(kind, True, 8)
        linear.test_strided_rows_in_and_out(5, 30)


@each_form
def test_packing(form: Form) -> None:
    with using(form):
        for kind in some_kinds():
            if kind.dtype is None:
                packing.test_canonical_codes_become_the_written_layout(kind)
            else:
                packing.test_dense_elements_become_the_written_layout(kind.dtype)
        for name in packing.BLOCKS:
            packing.test_stored_blocks_become_the_written_layout(name)
        for case in packing.CASES:
            packing.test_codes_as_stored_pack_as_canonical_codes_do(*case)


@each_form
def test_rounded_products(form: Form) -> None:
    with using(form):
        rounded.test_inputs_are_rounded_bit_for_bit(577)
        for kind in some_kinds():
            rounded.test_products_of_every_kind(kind)
        for name in packing.BLOCKS:
            rounded.test_products_of_stored_blocks(name)
        for bits in range(2, 9):
            rounded.test_the_largest_codes_and_inputs_do_not_overflow(bits, 32)
        rounded.test_the_largest_codes_and_inputs_do_not_overflow(8, 16)
        for table in (IQ4_NL, rounded.STEEP):
            rounded.test_products_of_bytes_from_a_table(table, 16)
            rounded.test_the_largest_entries_of_a_table_do_not_overflow(table, 32)
        rounded.test_bits_do_not_depend_on_the_batch_the_place_or_threads()
        rounded.test_what_is_no_number_stays_in_its_row(20)


@each_form
def test_compact_numbers(form: Form) -> None:
    with using(form):
        for kind in compact.KINDS:
            compact.test_products_have_the_bits_of_numbers_in_float32(kind)
        compact.test_stacked_scales_keep_their_runs()


@each_form
def test_attention(form: Form) -> None:
    with using(form):
        attention.test_decode_and_prefill_at_every_length(3, 20)
        attention.test_soft_caps(5.0, 17)
        attention.test_large_scores()
        attention.test_decode_prefill_and_chunks_give_the_same_bits(7, 20, 130, 5.0, torch.float16)
        for kv in attention.KV_TYPES:
            attention.test_many_keys(kv, 16)
            attention.test_bits_do_not_depend_on_how_many_keys_are_split(kv)


@each_form
def test_elementwise(form: Form) -> None:
    with using(form):
        for width in (15, 577):
            for exact in (False, True):
                elementwise.test_rms_norm(width, exact)
                elementwise.test_silu_mul(width, exact)
                elementwise.test_gelu_mul(width, exact)
        elementwise.test_add(17)
        for norms in ("per head", "whole"):
            elementwise.test_rope_and_kv_write(6, 2, 20, 20, 16, norms)
        for dtype in attention.KV_TYPES[1:]:
            elementwise.test_keys_and_values_are_rounded_bit_for_bit(dtype)
        elementwise.test_gated_mul_at_the_ends(40, False, "gelu_tanh")
        elementwise.test_exact_bits_of_norm_rope_and_gate_do_not_depend_on_the_batch()


@each_form
def test_draw(form: Form) -> None:
    with using(form):
        draw.test_argmax_takes_the_first_of_the_largest()
        draw.test_argmax_of_a_broken_row_is_none_and_the_others_have_theirs()
        draw.test_draws_are_those_of_the_reference()
        draw.test_nothing_is_drawn_from_a_broken_row()


@each_form
def test_quantized_inputs(form: Form) -> None:
    with using(form):
        for rule in inputs.RULES.values():
            inputs.test_inputs_are_quantized_bit_for_bit(rule, 577)
            inputs.test_products_with_a_scale_for_each_row(Kind(8), rule)
        inputs.test_not_a_number_stays_so()
        inputs.test_sums_below_2_to_the_24_are_exact(inputs.INT8)


@each_form
def test_calibration(form: Form) -> None:
    with using(form):
        for columns in (7, 61):
            calibrator.test_columns_are_rounded_bit_for_bit(columns)
        for group in (8, 100):
            for symmetric in (False, True):
                calibrator.test_uniform_grids_are_the_plain_ones_and_never_worse_than_clips(
                    group, symmetric
                )
        for tokens in (3, 520):
            calibrator.test_moments_of_whole_numbers_are_exact(tokens)
        calibrator.test_moments_are_those_of_rounded_inputs()
        calibrator.test_moments_of_what_is_no_number_are_none()
