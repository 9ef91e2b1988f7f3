"""The ways in which `mutants.py` breaks the package, and the tests that notice.

A new branch, sign or guard deserves a row. The text that a row replaces has to occur
once in its module; who changes such a line changes the row, and
`tests/test_mutants.py` says so. Rows name the fewest tests that should fail, on the
cheapest backend: PyTorch, except for what is another's own.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Mutant:
    """A way to break the package.

    Attributes:
        name: what is broken, as a word for `-k`.
        file: the module, below `keras_bnx/`.
        old: text that occurs once in it.
        new: what takes its place.
        tests: pytest's names of the tests that should fail, the likeliest first.
        backend: where they are run.
        reason: why no test can notice; `None` where one has to.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple
    backend: str = "torch"
    reason: str = None

    def broken(self, package):
        """The text of the module in the folder of the package, with the mutation.

        Raises:
            ValueError: unless the old text occurs exactly once, so that a row can't
                outlive the line that it breaks.
        """
        text = (package / self.file).read_text()
        if text.count(self.old) != 1 or self.old == self.new:
            raise ValueError(
                f"The mutant {self.name!r} is stale: its old text has to occur once in "
                f"{self.file}, and its new text has to differ. Received: "
                f"{text.count(self.old)} times {self.old!r}. Correct its row."
            )
        return text.replace(self.old, self.new)


CASES = "tests/test_batch_normalization.py"
OPS, BACKEND = "tests/ops", "tests/backends"
AVERAGES, FILES = "tests/test_averages.py", "tests/test_files.py"
CONVERSION, DERIVATIVES = "tests/test_conversion.py", "tests/test_derivatives.py"
COMBINATIONS = "tests/test_combinations.py::test_what_has_failed_once_is_the_oracles"


def outputs(*cases, implementation="auto", training=True):
    """Outputs and statistics of some of the table's cases."""
    name = f"{CASES}::test_outputs_and_statistics_are_the_oracles"
    return tuple(f"{name}[{implementation}-{training}-{case}]" for case in cases)


def gradients(*cases, implementation="auto"):
    """Their gradients."""
    name = f"{CASES}::test_gradients_are_the_oracles"
    return tuple(f"{name}[{implementation}-{case}]" for case in cases)


def gradients_at_inference(*cases, implementation="auto"):
    """Their gradients where the statistics are fixed."""
    name = f"{CASES}::test_gradients_at_inference_are_the_oracles"
    return tuple(f"{name}[{implementation}-{case}]" for case in cases)


def accuracy(*cases):
    """Errors in plain numbers, at any mean."""
    name = "tests/test_accuracy.py::test_errors_do_not_grow_with_the_mean"
    return tuple(f"{name}[{case}]" for case in cases)


def combination(name):
    """A call against the oracle that a mutant once survived."""
    return (f"tests/test_survivors.py::test_a_combination_is_the_oracles[{name}]",)


def survivors(*tests):
    return tuple(f"tests/test_survivors.py::{test}" for test in tests)


def behaviour(*tests):
    return tuple(f"tests/test_behaviour.py::{test}" for test in tests)


def only(*tests):
    return tests


STEPS = [
    # Bounds.
    Mutant(
        "at_least_is_at_most",
        "ops/bounds.py",
        "ops.where(x < bound, bound, x)",
        "ops.where(x > bound, bound, x)",
        only(f"{OPS}/test_bounds.py"),
    ),
    Mutant(
        "at_most_is_at_least",
        "ops/bounds.py",
        "ops.where(x > bound, bound, x)",
        "ops.where(x < bound, bound, x)",
        only(f"{OPS}/test_bounds.py"),
    ),
    Mutant(
        "a_bound_is_rounded_to_float32",
        "ops/bounds.py",
        "return ops.full_like(x, bound)",
        'return ops.cast(ops.cast(bound, "float32"), x.dtype)',
        only(f"{OPS}/test_bounds.py"),
    ),
    # Joining moments.
    Mutant(
        "join_forgets_the_variance_between_parts",
        "ops/moments.py",
        "joined.variance + ops.square(mean)",
        "joined.variance",
        only(f"{OPS}/test_virtual.py::test_joined_moments_are_those_of_the_batch"),
    ),
    Mutant(
        "join_weighs_means_alike",
        "ops/moments.py",
        "mean = total(joined.count * mean) / n",
        "mean = total(mean)",
        only(
            f"{OPS}/test_virtual.py::test_joined_moments_are_those_of_the_batch",
            *outputs("virtual_remainder"),
        ),
    ),
    Mutant(
        "join_weighs_variances_alike",
        "ops/moments.py",
        "second = total(joined.count * (joined.variance + ops.square(mean))) / n",
        "second = total(joined.variance + ops.square(mean)) / batches",
        only(f"{OPS}/test_virtual.py::test_joined_moments_are_those_of_the_batch"),
    ),
    Mutant(
        "join_counts_one_part",
        "ops/moments.py",
        "return value * batches",
        "return value",
        only(f"{OPS}/test_virtual.py::test_joined_moments_are_those_of_the_batch"),
    ),
    Mutant(
        "join_takes_what_is_not_finite",
        "ops/moments.py",
        "known = ops.logical_and(part.size > 0, ops.isfinite(part.variance))",
        "known = part.size > 0",
        only(
            f"{OPS}/test_virtual.py::"
            "test_what_is_not_finite_is_left_out_or_makes_the_rest_so"
        ),
    ),
    Mutant(
        "join_leaves_out_where_it_must_not",
        "ops/moments.py",
        "if not leave_out:",
        "if False:",
        only(
            f"{OPS}/test_virtual.py::"
            "test_what_is_not_finite_is_left_out_or_makes_the_rest_so",
            *behaviour("test_one_bad_element_spoils_no_statistics"),
        ),
        reason="a single part isn't looked at then, and of several all are known to be "
        "finite",
    ),
    Mutant(
        "join_differentiates_its_shift",
        "ops/moments.py",
        "shift = ops.stop_gradient(shift)",
        "shift = shift + 0.0",
        only(f"{OPS}/test_virtual.py"),
        reason="the shift cancels out of mean and variance: its gradient is 0, and to "
        "stop it saves work only",
    ),
    Mutant(
        "unbiased_is_biased_with_a_mask",
        "ops/moments.py",
        "ops.where(exists, batch.count - 1.0, one)",
        "ops.where(exists, batch.count, one)",
        outputs("unbiased_weights"),
    ),
    Mutant(
        "unbiased_is_biased",
        "ops/moments.py",
        "max(batch.count - 1, 1)",
        "max(batch.count, 1)",
        outputs("unbiased"),
    ),
    Mutant(
        "unbiased_variance_of_less_than_one",
        "ops/moments.py",
        "exists = batch.count > 1",
        "exists = batch.count > 0",
        only(f"{OPS}/test_moments.py"),
    ),
    # Averages over time.
    Mutant(
        "momentum_is_the_new_ones_weight",
        "ops/moving.py",
        "        return 1.0 - momentum\n",
        "        return momentum\n",
        only(f"{OPS}/test_moving.py"),
    ),
    Mutant(
        "cumulative_counts_one_more",
        "ops/moving.py",
        "_exact_first(1.0 / updates, updates)",
        "_exact_first(1.0 / (updates + 1.0), updates)",
        only(f"{OPS}/test_moving.py::test_the_cumulative_average_weighs_all_alike"),
    ),
    Mutant(
        "debias_divides_nothing_out",
        "ops/moving.py",
        "_exact_first((1.0 - momentum) / gone, updates)",
        "_exact_first(1.0 - momentum + 0.0 * gone, updates)",
        only(
            f"{OPS}/test_moving.py::"
            "test_the_weight_of_the_newest_divides_the_initial_value_out"
        ),
    ),
    Mutant(
        "the_first_two_have_all_the_weight",
        "ops/moving.py",
        "ops.where(updates > 1,",
        "ops.where(updates > 2,",
        only(
            f"{OPS}/test_moving.py::"
            "test_the_weight_of_the_newest_divides_the_initial_value_out"
        ),
    ),
    Mutant(
        "the_moving_mean_loses_the_rest",
        "ops/moving.py",
        "difference = difference + batch.mean",
        "difference = difference + 0.0 * batch.mean",
        only(f"{OPS}/test_moving.py::test_update_mean_by_hand"),
    ),
    Mutant(
        "the_moving_mean_steps_away",
        "ops/moving.py",
        "moving + ops.sign(difference) * step",
        "moving - ops.sign(difference) * step",
        only(
            f"{OPS}/test_moving.py::"
            "test_the_mean_comes_near_where_its_steps_are_lost_in_rounding"
        ),
    ),
    Mutant(
        "the_moving_mean_stands_still",
        "ops/moving.py",
        "return ops.where(stands, moving + ops.sign(difference) * step, new)",
        "return new",
        only(
            f"{OPS}/test_moving.py::"
            "test_the_mean_comes_near_where_its_steps_are_lost_in_rounding"
        ),
    ),
    Mutant(
        "a_weight_of_0_is_a_step",
        "ops/moving.py",
        "    stands = ops.logical_and(stands, share != 0.0)\n",
        "",
        only(
            f"{OPS}/test_moving.py::"
            "test_the_mean_comes_near_where_its_steps_are_lost_in_rounding"
        ),
    ),
    Mutant(
        "a_moving_mean_that_is_near_steps_on",
        "ops/moving.py",
        "ops.abs(difference) > step)",
        "ops.abs(difference) > 0.0)",
        only(f"{OPS}/test_moving.py"),
    ),
    Mutant(
        "scales_move_by_a_difference",
        "ops/moving.py",
        "return moving * (1.0 - weight) + new * weight",
        "return moving + weight * (new - moving)",
        only(
            f"{OPS}/test_moving.py::"
            "test_update_scale_keeps_small_values_beside_large_ones"
        ),
    ),
    Mutant(
        "scales_swap_their_weights",
        "ops/moving.py",
        "return moving * (1.0 - weight) + new * weight",
        "return moving * weight + new * (1.0 - weight)",
        only(f"{OPS}/test_moving.py"),
    ),
    Mutant(
        "an_imported_variance_is_overwritten",
        "ops/moving.py",
        "return at_most(at_least(moving_stddev, lower), upper)",
        "return moving_stddev",
        only(
            f"{OPS}/test_moving.py::"
            "test_the_deviation_is_kept_unless_the_variance_says_otherwise"
        ),
    ),
    Mutant(
        "statistics_are_never_kept",
        "ops/moving.py",
        "return _kept",
        "return False",
        only(
            f"{AVERAGES}::test_passes_that_keep_the_statistics_differ_in_nothing_else"
        ),
    ),
    # Renorm.
    Mutant(
        "r_is_its_inverse",
        "ops/renorm.py",
        "    r = stddev / renorm_stddev\n",
        "    r = renorm_stddev / stddev\n",
        only(f"{OPS}/test_renorm.py::test_by_hand"),
    ),
    Mutant(
        "d_subtracts_the_rest",
        "ops/renorm.py",
        "(batch.shift - renorm_mean) + batch.mean",
        "(batch.shift - renorm_mean) - batch.mean",
        only(f"{OPS}/test_renorm.py::test_by_hand"),
    ),
    Mutant(
        "d_is_in_units_of_the_batch",
        "ops/renorm.py",
        "+ batch.mean) / renorm_stddev",
        "+ batch.mean) / stddev",
        only(f"{OPS}/test_renorm.py::test_by_hand"),
    ),
    Mutant(
        "r_and_d_leave_epsilon_out",
        "ops/renorm.py",
        "ops.sqrt(batch.variance + epsilon)",
        "ops.sqrt(batch.variance)",
        only(f"{OPS}/test_renorm.py::test_by_hand"),
    ),
    Mutant(
        "rmin_bounds_r_above",
        "ops/renorm.py",
        "r = at_least(r, rmin)",
        "r = at_most(r, rmin)",
        only(f"{OPS}/test_renorm.py::test_clipping"),
    ),
    Mutant(
        "rmax_is_ignored",
        "ops/renorm.py",
        "r = at_most(r, rmax)",
        "r = r * 1.0",
        only(f"{OPS}/test_renorm.py::test_clipping"),
    ),
    Mutant(
        "d_is_unbounded_below",
        "ops/renorm.py",
        "at_most(at_least(d, -dmax), dmax)",
        "at_most(d, dmax)",
        only(f"{OPS}/test_renorm.py::test_d_is_clipped_below"),
    ),
    Mutant(
        "a_stored_deviation_of_0_divides",
        "ops/renorm.py",
        "renorm_stddev = at_least(renorm_stddev, math.sqrt(epsilon))",
        "math.sqrt(epsilon)",
        only(f"{OPS}/test_renorm.py::test_a_stored_deviation_of_zero_divides_nothing"),
    ),
    Mutant(
        "r_is_differentiated",
        "ops/renorm.py",
        "ops.stop_gradient(r),",
        "r,",
        gradients("renorm", implementation="generic"),
    ),
    Mutant(
        "d_is_differentiated",
        "ops/renorm.py",
        ", ops.stop_gradient(d)",
        ", d",
        gradients("renorm", implementation="generic"),
    ),
    # Replicas.
    Mutant(
        "each_replica_adds_to_the_first_row",
        "ops/replicas.py",
        "ops.arange(replicas.count) == replicas.index",
        "ops.arange(replicas.count) == 0",
        only(f"{OPS}/test_replicas.py"),
    ),
    Mutant(
        "groups_overlap",
        "ops/replicas.py",
        "replicas.index // size * size",
        "replicas.index",
        only(f"{OPS}/test_replicas.py::test_groups_are_consecutive"),
    ),
    Mutant(
        "groups_need_not_fit",
        "ops/replicas.py",
        "if replicas.count % size:",
        "if False:",
        only(f"{OPS}/test_replicas.py::test_groups_have_to_fit"),
    ),
    Mutant(
        "a_groups_gradient_is_of_all",
        "ops/replicas.py",
        "    if size is True:\n        return replicas.all_reduce_sum(value)\n",
        "    if size:\n        return replicas.all_reduce_sum(value)\n",
        only(f"{OPS}/test_replicas.py"),
    ),
    # Virtual batches.
    Mutant(
        "the_virtual_axis_moves_all_channels",
        "ops/virtual.py",
        "a + (a > batch_axis)",
        "a + 1",
        only(f"{OPS}/test_virtual.py"),
    ),
    Mutant(
        "the_rest_is_dropped",
        "ops/virtual.py",
        "        ops.expand_dims(rest, axis),\n",
        "",
        only(
            f"{OPS}/test_virtual.py::"
            "test_splitting_keeps_the_order_and_joining_undoes_it"
        ),
    ),
    Mutant(
        "virtual_batches_are_interleaved",
        "ops/virtual.py",
        "            return [ops.reshape(x, (*before, rows // size, size, *after))]",
        "            x = ops.reshape(x, (*before, size, rows // size, *after))\n"
        "            return [ops.swapaxes(x, axis, axis + 1)]",
        outputs("virtual_divides"),
    ),
    # Masks.
    Mutant(
        "numpy_wins_over_batch_first",
        "ops/weights.py",
        "in (shape + (1,) * missing, (1,) * missing + shape)",
        "in ((1,) * missing + shape, shape + (1,) * missing)",
        only(f"{OPS}/test_weights.py::test_batch_first_wins_over_numpy"),
    ),
    Mutant(
        "masks_cover_channels_first",
        "ops/weights.py",
        "        yield shape\n    missing",
        "        yield shape\n    yield shape + (1,) * (ndim - len(shape))\n"
        "    missing",
        outputs("mask_channels_first"),
    ),
    Mutant(
        "masks_of_any_size_fit",
        "ops/weights.py",
        "return size == 1 or size == full_size",
        "return True",
        only(f"{OPS}/test_weights.py"),
    ),
    Mutant(
        "a_mask_has_a_gradient",
        "ops/weights.py",
        "return ops.stop_gradient(ops.reshape(ops.cast(mask, dtype), shape))",
        "return ops.reshape(ops.cast(mask, dtype), shape)",
        only(f"{OPS}/test_weights.py::test_no_gradient_flows_to_a_mask"),
    ),
    Mutant(
        "no_mask_varies_by_channel",
        "ops/weights.py",
        "return weights is not None and any(weights.shape[i] != 1 for i in axes)",
        "return False",
        combination("absent_channel"),
    ),
    Mutant(
        "weight_0_counts",
        "ops/weights.py",
        "return ops.any(weights > 0, axis=others) if others else weights > 0",
        "return ops.any(weights >= 0, axis=others) if others else weights >= 0",
        combination("absent_channel_at_inference"),
    ),
    Mutant(
        "a_batch_of_padding_alone_leaves_all_out",
        "ops/weights.py",
        "absent = ops.logical_and(ops.logical_not(counted), any_counts)",
        "absent = ops.logical_not(counted)",
        combination("all_absent"),
    ),
]

LAYER = [
    Mutant(
        "the_mask_is_ignored",
        "batch_normalization.py",
        "None if mask is None else mask_to_weights(mask, x, dtype, axes=axes)",
        "None",
        outputs("mask"),
    ),
    Mutant(
        "trainable_is_ignored",
        "batch_normalization.py",
        'trains = self.trainable and "statistics" not in self._frozen',
        'trains = "statistics" not in self._frozen',
        behaviour("test_a_frozen_layer_is_in_inference_mode"),
    ),
    Mutant(
        "frozen_is_ignored",
        "batch_normalization.py",
        'trains = self.trainable and "statistics" not in self._frozen',
        "trains = self.trainable",
        only("tests/test_freezing.py::test_frozen_statistics_normalize_in_training"),
    ),
    Mutant(
        "an_empty_batch_takes_part",
        "batch_normalization.py",
        "if trains and (beside is not None or 0 not in tuple(x.shape)):",
        "if trains:",
        behaviour("test_a_batch_without_elements_changes_nothing"),
        reason="no channel of an empty batch is usable, and kernels aren't called for "
        "one: it saves work",
    ),
    Mutant(
        "a_traced_training_is_true",
        "batch_normalization.py",
        'trains = ops.cast(training, "bool") if traced else True',
        "trains = True",
        only(f"{DERIVATIVES}::test_training_may_be_a_traced_tensor"),
    ),
    Mutant(
        "trains_is_ignored",
        "batch_normalization.py",
        "usable = _both(self._is_usable(batch, native), trains)",
        "usable = self._is_usable(batch, native)",
        only(f"{DERIVATIVES}::test_training_may_be_a_traced_tensor"),
    ),
    Mutant(
        "what_is_not_finite_is_usable",
        "batch_normalization.py",
        "usable = _both(usable, known or ops.isfinite(vector))",
        "pass",
        behaviour("test_one_bad_element_spoils_no_statistics"),
    ),
    Mutant(
        "nothing_is_usable",
        "batch_normalization.py",
        "usable = batch.size > 0\n",
        "usable = batch.size >= 0\n",
        behaviour("test_a_batch_without_elements_changes_nothing"),
    ),
    Mutant(
        "share_is_not_zeroed",
        "batch_normalization.py",
        "share = 1.0 / ops.where(usable, batch.count, infinity)",
        "share = 1.0 / batch.count",
        combination("inf"),
    ),
    Mutant(
        "the_rest_is_not_zeroed",
        "batch_normalization.py",
        "rest if isinstance(rest, float) else ops.where(usable, rest, 0.0)",
        "rest",
        combination("inf_generic"),
    ),
    Mutant(
        "an_unusable_channel_keeps_the_batchs_shift",
        "batch_normalization.py",
        "shift = ops.where(usable, batch.shift, mean)",
        "shift = batch.shift",
        combination("inf"),
    ),
    Mutant(
        "an_unusable_channel_keeps_the_batchs_variance",
        "batch_normalization.py",
        "variance = ops.where(usable, batch.variance, variance)",
        "variance = batch.variance",
        combination("inf"),
    ),
    Mutant(
        "statistics_have_a_gradient",
        "batch_normalization.py",
        "            if not native:\n",
        "            if False:\n",
        survivors("test_no_gradient_flows_through_the_statistics"),
    ),
    Mutant(
        "one_element_has_a_variance",
        "batch_normalization.py",
        "_both(usable, batch.size > 1), batch.variance",
        "_both(usable, batch.size > 0), batch.variance",
        behaviour("test_one_element_moves_the_mean_and_not_the_variance"),
    ),
    Mutant(
        "an_unbiased_variance_always_exists",
        "batch_normalization.py",
        "            has_variance = _both(has_variance, exists)\n",
        "",
        survivors("test_weights_below_one_in_all_have_no_unbiased_variance"),
    ),
    Mutant(
        "unbiased_is_ignored",
        "batch_normalization.py",
        "        if self.unbiased_moving_variance:\n",
        "        if False:\n",
        outputs("unbiased"),
    ),
    Mutant(
        "updates_are_counted_twice",
        "batch_normalization.py",
        "mean_updates = old + 1.0",
        "mean_updates = old + 2.0",
        only(f"{AVERAGES}::test_the_cumulative_average_weighs_all_batches_alike"),
    ),
    Mutant(
        "updates_are_not_stored",
        "batch_normalization.py",
        "            write(history.mean_updates, usable, mean_updates, old)\n",
        "",
        only(f"{AVERAGES}::test_the_cumulative_average_weighs_all_batches_alike"),
    ),
    Mutant(
        "a_variance_that_is_missing_is_counted",
        "batch_normalization.py",
        "write(history.scale_updates, has_variance, scale_updates, old)",
        "write(history.scale_updates, usable, scale_updates, old)",
        combination("one_row_is_counted_once"),
    ),
    Mutant(
        "the_moving_mean_is_not_written",
        "batch_normalization.py",
        "        average(update_mean, self.moving_mean, *of_mean)\n",
        "",
        outputs("dense"),
    ),
    Mutant(
        "the_moving_variance_is_not_written",
        "batch_normalization.py",
        "            average(update_scale, self.moving_variance, *of_scale)\n",
        "",
        outputs("dense"),
    ),
    Mutant(
        "the_debiased_scale_is_not_written",
        "batch_normalization.py",
        "            average(update_scale, history.debiased_scale, *of_scale, "
        "debias=True)\n",
        "",
        outputs("debiased"),
    ),
    Mutant(
        "the_debiased_mean_is_not_debiased",
        "batch_normalization.py",
        "average(update_mean, history.debiased_mean, *of_mean, debias=True)",
        "average(update_mean, history.debiased_mean, *of_mean)",
        outputs("debiased"),
    ),
    Mutant(
        "renorms_moving_stddev_is_not_written",
        "batch_normalization.py",
        "        write(self.moving_stddev, has_variance, new, stddev)\n",
        "",
        outputs("renorm"),
    ),
    Mutant(
        "renorms_moving_variance_is_not_written",
        "batch_normalization.py",
        "        write(self.moving_variance, has_variance, "
        "_variance_of(new, self.epsilon), old)\n",
        "",
        outputs("renorm"),
    ),
    Mutant(
        "renorm_compares_with_the_unbiased_deviation",
        "batch_normalization.py",
        "        scale = ops.sqrt(batch.variance + self.epsilon)\n",
        "",
        outputs("unbiased_weights"),
    ),
    Mutant(
        "renorms_momentum_is_the_other",
        "batch_normalization.py",
        "momentum = self.renorm_momentum\n",
        "momentum = self.momentum\n",
        outputs("renorm_clipped"),
    ),
    Mutant(
        "a_deviations_variance_keeps_epsilon",
        "batch_normalization.py",
        "ops.square(stddev) - epsilon",
        "ops.square(stddev)",
        outputs("renorm"),
    ),
    Mutant(
        "a_momentum_of_1_is_divided_out",
        "batch_normalization.py",
        "if not self.debias_moving_statistics or self.momentum == 1.0:",
        "if not self.debias_moving_statistics:",
        survivors("test_a_momentum_of_1_keeps_the_initial_statistics_at_inference"),
    ),
    Mutant(
        "debiased_before_any_batch",
        "batch_normalization.py",
        "self._read(history.mean_updates, dtype) > 0",
        "self._read(history.mean_updates, dtype) >= 0",
        only(f"{AVERAGES}::test_initial_values_are_divided_out"),
    ),
    Mutant(
        "debiased_is_ignored_at_inference",
        "batch_normalization.py",
        "self._read(history.debiased_mean, dtype),",
        "mean,",
        only(f"{AVERAGES}::test_initial_values_are_divided_out"),
    ),
    Mutant(
        "a_debiased_deviation_is_taken_for_a_variance",
        "batch_normalization.py",
        "            scale = _variance_of(scale, self.epsilon)\n",
        "            scale = scale * 1.0\n",
        only(f"{AVERAGES}::test_initial_values_are_divided_out"),
    ),
    Mutant(
        "renorm_uses_what_it_does_not_know",
        "batch_normalization.py",
        "            usable = _both(usable, known)\n",
        "            pass\n",
        only(
            f"{AVERAGES}::"
            "test_renorm_starts_as_batch_normalization_and_not_as_the_identity"
        ),
    ),
    Mutant(
        "an_unusable_channel_has_an_r",
        "batch_normalization.py",
        "        r = _select(usable, r, ops.ones_like(r))\n",
        "",
        combination("inf_renorm"),
    ),
    Mutant(
        "an_unusable_channel_has_a_d",
        "batch_normalization.py",
        "        d = _select(usable, d, ops.zeros_like(d))\n",
        "",
        combination("inf_renorm"),
    ),
    Mutant(
        "d_is_not_scaled_by_gamma",
        "batch_normalization.py",
        "r, d = r * gamma, d * gamma",
        "r = r * gamma",
        outputs("renorm"),
    ),
    Mutant(
        "beta_is_lost_under_renorm",
        "batch_normalization.py",
        "return r, d if beta is None else d + beta",
        "return r, d",
        outputs("renorm"),
    ),
    Mutant(
        "a_channel_of_padding_is_scaled",
        "batch_normalization.py",
        "            gamma = leave_out_absent(gamma, batch.size > 0, channels)\n",
        "",
        combination("absent_channel"),
    ),
    Mutant(
        "a_channel_of_padding_is_scaled_at_inference",
        "batch_normalization.py",
        "                gamma = leave_out_absent(gamma, counted, range(len(axes)))\n",
        "",
        combination("absent_channel_at_inference"),
    ),
    Mutant(
        "kept_statistics_move",
        "batch_normalization.py",
        "if not (backend.is_recomputing() or are_kept()):",
        "if not backend.is_recomputing():",
        only(
            f"{AVERAGES}::test_passes_that_keep_the_statistics_differ_in_nothing_else"
        ),
    ),
    Mutant(
        "recomputing_moves_the_statistics",
        "batch_normalization.py",
        "if not (backend.is_recomputing() or are_kept()):",
        "if not are_kept():",
        only(f"{BACKEND}/test_torch.py::test_torchs_own_checkpoint_updates_once"),
    ),
    Mutant(
        "a_traced_false_is_a_step_of_schedules",
        "batch_normalization.py",
        'self.history.steps.assign_add(ops.cast(trains, "int32"))',
        "self.history.steps.assign_add(1)",
        survivors("test_a_traced_false_is_no_step_of_schedules"),
    ),
    Mutant(
        "steps_are_not_counted",
        "batch_normalization.py",
        'self.history.steps.assign_add(ops.cast(trains, "int32"))',
        "pass",
        only("tests/test_schedules.py::test_limits_relax_with_the_layers_steps"),
    ),
    Mutant(
        "float32_is_narrowed_before",
        "batch_normalization.py",
        'return inputs if narrow else _cast(inputs, "float32")',
        "return _cast(inputs, self.compute_dtype)",
        behaviour("test_values_that_float16_lacks_survive"),
    ),
    Mutant(
        "float64_inputs_are_narrowed",
        "batch_normalization.py",
        "dtypes = {dtype, self.compute_dtype, self.variable_dtype}",
        "dtypes = {self.compute_dtype, self.variable_dtype}",
        combination("float64_inputs"),
    ),
    Mutant(
        "generic_rounds_its_gradients_to_16_bits",
        "batch_normalization.py",
        "            x = _cast(x, dtype)\n        return arithmetic, x",
        "            pass\n        return arithmetic, x",
        gradients("mixed_bfloat16_rows", implementation="generic")
        + gradients("mixed_bfloat16_mean_100", implementation="generic"),
    ),
    Mutant(
        "epsilon_may_be_0",
        "batch_normalization.py",
        '_validate_number("epsilon", epsilon, 0.0, above=True)',
        '_validate_number("epsilon", epsilon, 0.0)',
        behaviour("test_bad_arguments_are_value_errors_with_the_value"),
    ),
    Mutant(
        "freezing_thaws_the_other_half",
        "batch_normalization.py",
        "if on or k in self._frozen)",
        "if on)",
        survivors("test_freezing_one_half_leaves_the_other_frozen"),
    ),
    Mutant(
        "affine_thaws_with_trainable",
        "batch_normalization.py",
        'weight.trainable = self.trainable and "affine" not in self._frozen',
        "weight.trainable = self.trainable",
        only("tests/test_freezing.py"),
    ),
    Mutant(
        "reset_forgets_the_history",
        "batch_normalization.py",
        "            self.history.reset()\n\n    def freeze",
        "            pass\n\n    def freeze",
        only(f"{AVERAGES}::test_the_cumulative_average_weighs_all_batches_alike"),
    ),
    Mutant(
        "reset_forgets_renorm",
        "batch_normalization.py",
        "            self._start_renorm(ops.sqrt(self.moving_variance))\n        if",
        "            pass\n        if",
        survivors("test_a_reset_is_one_of_renorms_statistics_too"),
    ),
    Mutant(
        "the_config_lacks_virtual_batches",
        "batch_normalization.py",
        '            "virtual_batch_size": self.virtual_batch_size,\n',
        "",
        survivors("test_each_argument_survives_its_config"),
    ),
    Mutant(
        "the_config_lacks_debiasing",
        "batch_normalization.py",
        '            "debias_moving_statistics": self.debias_moving_statistics,\n',
        "",
        survivors("test_each_argument_survives_its_config"),
    ),
    Mutant(
        "the_config_lacks_axis_name",
        "batch_normalization.py",
        '            "axis_name": self.axis_name,\n',
        "",
        survivors("test_each_argument_survives_its_config"),
    ),
    Mutant(
        "the_config_lacks_synchronized",
        "batch_normalization.py",
        '            "synchronized": self.synchronized,\n',
        "",
        behaviour("test_config_and_weights_are_keras"),
    ),
    Mutant(
        "configs_thaw",
        "batch_normalization.py",
        '        layer.freeze("statistics" in frozen, "affine" in frozen)\n',
        "",
        only("tests/test_freezing.py::test_clones_and_configs_are_frozen_alike"),
    ),
    Mutant(
        "loading_leaves_the_history",
        "batch_normalization.py",
        "            self.history.continue_from(self)\n",
        "            pass\n",
        only(
            f"{FILES}::"
            "test_what_averages_know_of_their_past_keeps_files_as_keras_has_them"
        ),
    ),
    Mutant(
        "an_unknown_past_is_none",
        "batch_normalization.py",
        "updates.assign(ops.full_like(updates.value, math.inf))",
        "updates.assign(ops.zeros_like(updates.value))",
        only(
            f"{FILES}::"
            "test_what_averages_know_of_their_past_keeps_files_as_keras_has_them"
        ),
    ),
    Mutant(
        "loaded_renorm_starts_without_epsilon",
        "batch_normalization.py",
        "self._start_renorm(ops.sqrt(self.moving_variance + self.epsilon))",
        "self._start_renorm(ops.sqrt(self.moving_variance))",
        only(f"{FILES}::test_plain_weights_load_into_renorm"),
    ),
    Mutant(
        "renorms_mean_starts_at_0",
        "batch_normalization.py",
        "self.renorm_mean.assign(ops.copy(self.moving_mean))",
        "self.renorm_mean.assign(ops.zeros_like(self.moving_mean))",
        only(f"{FILES}::test_plain_weights_load_into_renorm"),
    ),
    Mutant(
        "joined_virtual_batches_forget_trains",
        "batch_normalization.py",
        "usable = _both(self._is_usable(batch, native and known), trains)",
        "usable = self._is_usable(batch, native and known)",
        combination("traced_false_virtual"),
    ),
    Mutant(
        "the_last_virtual_batch_decides_what_is_usable",
        "batch_normalization.py",
        "            if joins or divides:\n",
        "            if joins:\n",
        combination("inf_in_the_last_virtual_batch"),
    ),
    Mutant(
        "float64_is_stored_as_inf",
        "batch_normalization.py",
        "vectors = [ops.cast(vector, stored) for vector in vectors]",
        "pass",
        only(f"{COMBINATIONS}[a variance that only float64 holds]"),
    ),
    Mutant(
        "a_float64_mean_is_stored_as_inf",
        "batch_normalization.py",
        "vectors = [batch.variance, batch.shift + batch.mean]",
        "vectors = [batch.variance]",
        only(f"{COMBINATIONS}[a mean that only float64 holds]"),
    ),
    Mutant(
        "a_joined_variance_is_not_judged",
        "batch_normalization.py",
        "            if joins or divides:\n",
        "            if joins or (divides and not known):\n",
        only(f"{COMBINATIONS}[a joined variance that overflows]"),
    ),
    Mutant(
        "a_momentum_of_one_is_divided_by_0",
        "batch_normalization.py",
        "if not self.debias_moving_statistics or self.momentum == 1.0:",
        "if not self.debias_moving_statistics:",
        only("tests/test_averages.py::test_a_momentum_of_one_never_sees_a_batch"),
    ),
    Mutant(
        "a_renorm_momentum_of_one_is_divided_by_0",
        "batch_normalization.py",
        "if not self.debias_moving_statistics or self.renorm_momentum == 1.0:",
        "if not self.debias_moving_statistics:",
        only("tests/test_averages.py::test_a_momentum_of_one_never_sees_a_batch"),
    ),
    Mutant(
        "a_recomputed_pass_forgets_its_group",
        "backends/torch.py",
        "    elif is_recomputing() and _repeated:",
        "    elif False:",
        only("tests/test_synchronized.py::test_replicas_are_one_batch[4]"),
    ),
    Mutant(
        "a_virtual_batch_that_is_not_finite_is_joined",
        "batch_normalization.py",
        "join(batches, axis, leave_out=not known)",
        "join(batches, axis, leave_out=False)",
        only(f"{OPS}/test_virtual.py"),
    ),
    Mutant(
        "rmin_may_be_above_rmax",
        "batch_normalization.py",
        "        if rmin > rmax:\n",
        "        if False:\n",
        behaviour("test_bad_arguments_are_value_errors_with_the_value"),
    ),
    Mutant(
        "schedules_are_not_looked_at",
        "batch_normalization.py",
        "for step in [0, *(10**i for i in range(8))] if scheduled else [0]:",
        "for step in [0]:",
        behaviour("test_bad_arguments_are_value_errors_with_the_value"),
    ),
    Mutant(
        "a_file_without_history_is_refused",
        "batch_normalization.py",
        "        if len(store.keys()):\n            super()",
        "        if True:\n            super()",
        only(
            f"{FILES}::"
            "test_what_averages_know_of_their_past_keeps_files_as_keras_has_them"
        ),
    ),
    Mutant(
        "renorms_statistics_share_a_buffer",
        "batch_normalization.py",
        "self.renorm_stddev.assign(ops.copy(stddev))",
        "self.renorm_stddev.assign(stddev)",
        survivors("test_a_layer_that_was_reset_is_fitted"),
        backend="jax",
    ),
    Mutant(
        "an_unknown_past_shares_a_buffer",
        "batch_normalization.py",
        "self.debiased_mean.assign(ops.copy(layer.moving_mean))",
        "self.debiased_mean.assign(layer.moving_mean)",
        survivors("test_a_layer_that_was_loaded_is_fitted"),
        backend="jax",
    ),
    Mutant(
        "replicas_join_nothing",
        "batch_normalization.py",
        "joins = beside and (self.synchronized or beside.joins)",
        "joins = False",
        only("tests/test_synchronized.py::test_replicas_are_one_batch[2]"),
    ),
]

GENERIC = [
    Mutant(
        "generic_sums_without_a_shift",
        "backends/generic.py",
        "shift = ops.stop_gradient(pick_element(x, others))",
        "shift = ops.zeros_like(pick_element(x, others))",
        only(f"{OPS}/test_moments.py::test_mean_and_variance_keep_their_digits"),
    ),
    Mutant(
        "generic_differentiates_its_shift",
        "backends/generic.py",
        "shift = ops.stop_gradient(pick_element(x, others))",
        "shift = pick_element(x, others)",
        gradients("dense", implementation="generic"),
        reason="the shift cancels out of the result: its gradient is 0, and to stop it "
        "saves work only",
    ),
    Mutant(
        "generic_divides_by_0",
        "backends/generic.py",
        "total(values) / ops.where(count > 0, count, ops.ones_like(count))",
        "total(values) / count",
        behaviour("test_a_batch_without_elements_changes_nothing")
        + only(f"{OPS}/test_moments.py::test_no_element_and_one_element"),
    ),
    Mutant(
        "generic_reads_padding",
        "backends/generic.py",
        "shifted = ops.where(counted, x, shift) - shift",
        "shifted = x - shift",
        behaviour("test_nan_in_padding_reaches_nothing"),
    ),
    Mutant(
        "generic_ignores_weights",
        "backends/generic.py",
        "values = weights * values",
        "values = 1.0 * values",
        outputs("weights"),
    ),
    Mutant(
        "generic_takes_weights_below_0",
        "backends/generic.py",
        "weights = ops.where(counted, weights, ops.zeros_like(weights))",
        "weights = weights * 1.0",
        survivors("test_weights_that_are_negative_or_nan_are_0"),
    ),
    Mutant(
        "generic_takes_weights_for_sizes",
        "backends/generic.py",
        "ops.cast(ops.broadcast_to(counted, shape), x.dtype)",
        "ops.broadcast_to(weights, shape)",
        behaviour("test_many_small_weights_are_not_one_element"),
    ),
    Mutant(
        "generic_counts_elements",
        "backends/generic.py",
        "count = total(ops.broadcast_to(weights, shape))",
        "count = total(ops.cast(ops.broadcast_to(counted, shape), x.dtype))",
        outputs("weights"),
    ),
    Mutant(
        "generic_squares_what_overflows",
        "backends/generic.py",
        "ops.where(ops.abs(centered) < limit, centered, nan)",
        "centered",
        combination("inf_generic"),
    ),
    Mutant(
        "generic_takes_the_difference_of_squares",
        "backends/generic.py",
        "    centered = shifted - mean\n",
        "    centered = shifted\n",
        only(f"{OPS}/test_moments.py"),
    ),
    Mutant(
        "generic_rounds_the_mean",
        "backends/generic.py",
        "        centered = centered - per_element(mean)\n",
        "        centered = x - per_element(shift + mean)\n",
        accuracy("rows-plain-generic"),
    ),
    Mutant(
        "generic_normalizes_by_x_a_b",
        "backends/generic.py",
        "    y = centered * per_element(scale)\n",
        "    y = x * per_element(scale) - per_element((shift + mean) * scale)\n",
        accuracy("rows-plain-generic"),
    ),
    Mutant(
        "generic_outputs_padding",
        "backends/generic.py",
        "harmless = ops.logical_or(weights > 0, ops.isfinite(x))",
        "harmless = weights >= 0",
        only(f"{OPS}/test_normalize.py"),
    ),
    Mutant(
        "generic_takes_all_padding_for_the_mean",
        "backends/generic.py",
        "harmless = ops.logical_or(weights > 0, ops.isfinite(x))",
        "harmless = weights > 0",
        only(f"{OPS}/test_normalize.py"),
    ),
    Mutant(
        "generic_adds_epsilon_to_the_deviation",
        "backends/generic.py",
        "ops.sqrt(variance + epsilon)",
        "ops.sqrt(variance) + epsilon",
        only(f"{OPS}/test_normalize.py"),
    ),
    Mutant(
        "generic_sums_in_16_bits",
        "backends/generic.py",
        'return ops.cast(x, "float64" if dtype == "float64" else "float32")',
        "return x",
        outputs("mixed_bfloat16_mask"),
    ),
    Mutant(
        "generic_is_normalized_by_other_axes",
        "backends/generic.py",
        "return tuple(i for i in range(len(x.shape)) if i not in axes)",
        "return tuple(i for i in range(len(x.shape) - 1))",
        only(f"{BACKEND}/test_generic.py"),
    ),
]

TORCH = [
    Mutant(
        "torch_does_not_look_again",
        "backends/torch.py",
        '    if values.device.type == "cpu" and _is_beyond(_LARGE, mean, variance):\n',
        "    if False:\n",
        accuracy("rows-plain-native"),
    ),
    Mutant(
        "torch_does_not_look_again_at_virtual_batches",
        "backends/torch.py",
        'if values.device.type != "cpu" or _is_beyond(_LARGE, mean, variance):',
        "if False:",
        accuracy("rows-virtual-native"),
    ),
    Mutant(
        "torch_normalizes_by_x_a_b_at_inference",
        "backends/torch.py",
        "large = _is_beyond(_LARGE, shift, variance + epsilon)",
        "large = False",
        accuracy("rows-plain-native"),
    ),
    Mutant(
        "torch_rounds_the_mean",
        "backends/torch.py",
        "large = isinstance(mean, torch.Tensor)\n",
        "large = False\n",
        accuracy("rows-plain-native"),
    ),
    Mutant(
        "torch_ignores_the_rest",
        "backends/torch.py",
        "    return shift if mean is None else shift + mean",
        "    return shift",
        outputs("dense", "raw_table"),
        reason="where the mean is so large that the rest is one, the digits of a "
        "rounded sum are cut by epsilon",
    ),
    Mutant(
        "torch_calls_kernels_for_nothing",
        "backends/torch.py",
        "        if x.numel() == 0:\n            # Not",
        "        if False:\n            # Not",
        only(
            f"{BACKEND}/test_torch.py::test_an_empty_batch_has_empty_and_zero_gradients"
        ),
    ),
    Mutant(
        "torch_calls_kernels_backward_for_nothing",
        "backends/torch.py",
        "if weights is not None or x.numel() == 0 or torch.is_grad_enabled():",
        "if weights is not None or torch.is_grad_enabled():",
        only(
            f"{BACKEND}/test_torch.py::test_an_empty_batch_has_empty_and_zero_gradients"
        ),
    ),
    Mutant(
        "torch_keeps_statistics_that_move",
        "backends/torch.py",
        "        shift, variance = shift.clone(), variance.clone()\n",
        "        pass\n",
        only(
            f"{BACKEND}/test_torch.py::"
            "test_moving_statistics_may_move_before_the_backward_pass"
        ),
    ),
    Mutant(
        "torch_multiplies_0_by_infinity",
        "backends/torch.py",
        "        sums = torch.where(share > 0, sums, 0.0)\n",
        "        pass\n",
        only(
            f"{BACKEND}/test_torch.py::"
            "test_an_unusable_channel_has_the_gradient_of_inference"
        ),
    ),
    Mutant(
        "torch_forgets_share",
        "backends/torch.py",
        "    return share * sums\n",
        "    return sums\n",
        gradients("mask", "virtual_divides"),
    ),
    Mutant(
        "torch_sums_rows_that_are_far",
        "backends/torch.py",
        "if not _is_beyond(_FAR, mean, variance):",
        "if True:",
        accuracy("images_first-plain-native"),
    ),
    Mutant(
        "torch_forgets_the_tail_of_blocks",
        "backends/torch.py",
        "return mean, (within + (tail - mean).square().sum(0)) / n",
        "return mean, within / n",
        outputs("many_rows"),
    ),
    Mutant(
        "torch_forgets_the_variance_between_blocks",
        "backends/torch.py",
        "(variances + (means - mean).square())",
        "variances",
        outputs("many_rows"),
    ),
    Mutant(
        "torch_is_unbiased_in_16_bits",
        "backends/torch.py",
        "variance * ((n - 1) / n)",
        "variance * ((n - 0) / n)",
        outputs("mixed_bfloat16_images_first", "mixed_bfloat16_rows"),
    ),
    Mutant(
        "torch_adds_the_gradient_of_the_variance",
        "backends/torch.py",
        "(-share * scale * dgamma)",
        "(share * scale * dgamma)",
        gradients("few_channels"),
    ),
    Mutant(
        "torch_forgets_the_gradient_of_the_mean",
        "backends/torch.py",
        "dx.add_((-share * scale * dbeta).repeat(block)).addcmul_",
        "dx.addcmul_",
        gradients("few_channels"),
    ),
    Mutant(
        "torch_differentiates_fixed_statistics",
        "backends/torch.py",
        "            share is not None,\n",
        "            True,\n",
        gradients_at_inference("dense"),
    ),
    Mutant(
        "torch_swaps_gamma_and_beta",
        "backends/torch.py",
        "        dx, dgamma, dbeta = found\n",
        "        dx, dbeta, dgamma = found\n",
        gradients("dense"),
    ),
    Mutant(
        "torch_forgets_the_center_of_virtual_batches",
        "backends/torch.py",
        "offset = -scale * first - slope * center",
        "offset = -scale * first",
        gradients("virtual_divides"),
    ),
    Mutant(
        "torch_adds_virtual_slopes",
        "backends/torch.py",
        "slope = -scale * inverse * second",
        "slope = scale * inverse * second",
        gradients("virtual_divides"),
    ),
    Mutant(
        "torch_takes_weights_below_0",
        "backends/torch.py",
        "weights.clamp(min=0).nan_to_num()",
        "weights.nan_to_num()",
        survivors("test_weights_that_are_negative_or_nan_are_0"),
    ),
    Mutant(
        "torch_takes_weights_that_are_nan",
        "backends/torch.py",
        "weights.clamp(min=0).nan_to_num()",
        "weights.clamp(min=0)",
        survivors("test_weights_that_are_negative_or_nan_are_0"),
    ),
    Mutant(
        "torch_multiplies_weight_0_by_infinity",
        "backends/torch.py",
        "return values if weights is None else torch.where(weights > 0, values, 0.0)",
        "return values",
        survivors("test_what_padding_overflows_to_has_no_second_derivative"),
    ),
    Mutant(
        "torch_gives_padding_a_gradient",
        "backends/torch.py",
        "        dx = torch.where(harmless, dy, 0.0)\n",
        "",
        combination("poison"),
    ),
    Mutant(
        "torch_is_once_differentiable_in_the_mean",
        "backends/torch.py",
        "mean = mean + (first - first.detach())",
        "mean = mean + 0.0 * first",
        only(f"{DERIVATIVES}::test_second_order_is_that_of_the_oracle"),
    ),
    Mutant(
        "torch_is_once_differentiable_in_the_variance",
        "backends/torch.py",
        "variance = variance + (second - second.detach())",
        "variance = variance + 0.0 * second.detach()",
        only(f"{DERIVATIVES}::test_second_order_is_that_of_the_oracle"),
    ),
    Mutant(
        "torch_knows_that_all_is_finite",
        "backends/torch.py",
        'return vector.device.type == "cpu" and math.isfinite(vector.sum())',
        "return True",
        behaviour("test_one_bad_element_spoils_no_statistics"),
    ),
    Mutant(
        "torch_recomputes_as_if_first",
        "backends/torch.py",
        "return torch._C._current_graph_task_id() != -1",
        "return False",
        only(f"{BACKEND}/test_torch.py::test_recomputing_is_only_inside_backward"),
    ),
    Mutant(
        "torch_ignores_the_process_group",
        "backends/torch.py",
        "        group = parallel.process_group\n",
        "        group = None\n",
        only("tests/test_synchronized.py::test_replicas_are_one_batch[4]"),
    ),
    Mutant(
        "torch_reduces_nothing_backward",
        "backends/torch.py",
        "return _AllReduceSum.apply(upstream, ctx.group), None",
        "return upstream, None",
        only("tests/test_synchronized.py::test_replicas_are_one_batch[2]"),
    ),
    Mutant(
        "torch_ignores_the_other_replicas_gradients",
        "backends/torch.py",
        "        sums = sum_replicas(sums)\n",
        "        pass\n",
        only("tests/test_synchronized.py::test_replicas_are_one_batch[2]"),
    ),
]

TOOLS = [
    Mutant(
        "subclasses_are_converted",
        "conversion.py",
        "    if type(layer) in _CONVERTED:\n",
        "    if isinstance(layer, _CONVERTED):\n",
        only(f"{CONVERSION}::test_subclasses_are_kept"),
    ),
    Mutant(
        "converted_arguments_stay",
        "conversion.py",
        "{**layer.get_config(), **arguments}",
        "{**arguments, **layer.get_config()}",
        only(f"{CONVERSION}::test_there_and_back_keeps_all_but_the_arguments"),
    ),
    Mutant(
        "converted_layers_start_anew",
        "conversion.py",
        "                _copy_weights(old, new)\n",
        "                pass\n",
        only(f"{CONVERSION}::test_there_and_back_keeps_all_but_the_arguments"),
    ),
    Mutant(
        "converted_counts_start_anew",
        "conversion.py",
        "            _copy_own(old.history, new.history)\n",
        "            pass\n",
        only(f"{CONVERSION}::test_what_averages_know_and_what_is_frozen_is_kept"),
    ),
    Mutant(
        "shared_layers_are_converted_twice",
        "conversion.py",
        "        if id(layer) not in pairs:\n",
        "        if True:\n",
        only(f"{CONVERSION}::test_what_is_shared_stays_shared"),
    ),
    Mutant(
        "converted_layers_train",
        "conversion.py",
        "            if new.trainable != old.trainable:\n",
        "            if False:\n",
        only(f"{CONVERSION}::test_what_trains_is_kept"),
    ),
    Mutant(
        "converting_shares_buffers",
        "conversion.py",
        "{key: ops.copy(value) for key, value in store.items()}",
        "store",
        only(f"{CONVERSION}::test_training_one_leaves_the_other_as_it_was"),
        backend="jax",
    ),
    Mutant(
        "kerass_layers_are_frozen_by_half",
        "freezing.py",
        "    if kerass:\n",
        "    if False:\n",
        only("tests/test_freezing.py::test_keras_layers_are_frozen_as_a_whole"),
    ),
    Mutant(
        "the_halves_are_swapped",
        "freezing.py",
        "layer.freeze(statistics, affine)",
        "layer.freeze(affine, statistics)",
        only("tests/test_freezing.py::test_each_half_is_frozen_under_fit_and_thawed"),
    ),
    Mutant(
        "kerass_layers_stay_frozen",
        "freezing.py",
        "            layer.trainable = True\n",
        "            pass\n",
        only("tests/test_freezing.py::test_keras_layers_are_frozen_as_a_whole"),
    ),
    Mutant(
        "nothing_is_said_after_compile",
        "freezing.py",
        'if getattr(model, "compiled", False):',
        "if False:",
        only("tests/test_freezing.py::test_a_compiled_model_says_what_has_to_be_done"),
    ),
    Mutant(
        "dictionaries_are_not_searched",
        "models.py",
        "            waiting += item.values()\n",
        "            pass\n",
        only("tests/test_models.py"),
        reason="Keras lists layers of dictionaries among a layer's own, too",
    ),
    Mutant(
        "attributes_are_not_searched",
        "models.py",
        ", *vars(item).values()]",
        "]",
        only("tests/test_models.py"),
    ),
    Mutant(
        "ramps_go_on",
        "schedules.py",
        "ops.clip(passed, 0.0, 1.0)",
        "passed",
        only("tests/test_schedules.py::test_the_papers_numbers_are_the_defaults"),
    ),
    Mutant(
        "ramps_start_at_once",
        "schedules.py",
        '(ops.cast(step, "float32") - self.start)',
        'ops.cast(step, "float32")',
        only("tests/test_schedules.py::test_the_papers_numbers_are_the_defaults"),
    ),
    Mutant(
        "ramps_forget_that_they_are_reciprocal",
        "schedules.py",
        '            "reciprocal": self.reciprocal,\n',
        "",
        only("tests/test_schedules.py::test_a_ramp_is_restored"),
    ),
    Mutant(
        "r_and_d_relax_alike",
        "schedules.py",
        "Ramp(0.0, dmax, start=start, end=dmax_end)",
        "Ramp(0.0, dmax, start=start, end=rmax_end)",
        only("tests/test_schedules.py::test_the_papers_numbers_are_the_defaults"),
    ),
]

JAX = [
    Mutant(
        "jax_divides_after_the_sum",
        "backends/jax.py",
        "    mean = jnp.sum(x / n, others)\n",
        "    mean = jnp.sum(x, others) / n\n",
        accuracy("images-renorm-native"),
    ),
    Mutant(
        "jax_multiplies_a_large_element_before_its_weight",
        "backends/jax.py",
        "jnp.sum((weight * x_hat) * dx, others)",
        "jnp.sum(weight * (x_hat * dx), others)",
        only(f"{COMBINATIONS}[a square that overflows where the weight is 0]"),
    ),
    Mutant(
        "jax_rounds_the_mean",
        "backends/jax.py",
        "    large = jnp.any(jnp.square(mean) > _LARGE**2 * variance)\n",
        "    large = jnp.any(jnp.square(mean) < 0.0)\n",
        accuracy("rows-plain-native"),
    ),
    Mutant(
        "jax_normalizes_by_x_a_b",
        "backends/jax.py",
        "    return in_keras_ops.normalize(x, weights, axes=axes, epsilon=epsilon, "
        "**vectors)\n",
        "    inverse = 1.0 / jnp.sqrt(vectors['variance'] + epsilon)\n"
        "    offset = -(vectors['shift'] + vectors['mean']) * inverse\n"
        "    y = x * _per_element(x, axes)(inverse) + _per_element(x, axes)(offset)\n"
        "    for name in ('gamma', 'beta'):\n"
        "        if vectors[name] is not None:\n"
        "            v = _per_element(x, axes)(vectors[name])\n"
        "            y = y * v if name == 'gamma' else y + v\n"
        "    return y.astype(x.dtype)\n",
        accuracy("rows-plain-native"),
    ),
    Mutant(
        "jax_adds_the_gradient_of_the_variance",
        "backends/jax.py",
        "p, q = -scale * second, -scale * first",
        "p, q = scale * second, -scale * first",
        gradients("dense"),
    ),
    Mutant(
        "jax_swaps_the_two_sums",
        "backends/jax.py",
        "p, q = -scale * second, -scale * first",
        "p, q = -scale * first, -scale * second",
        gradients("dense"),
    ),
    Mutant(
        "jax_multiplies_0_by_infinity",
        "backends/jax.py",
        "return tuple(jnp.where(share > 0, total, 0.0) for total in sums)",
        "return sums",
        combination("inf"),
    ),
    Mutant(
        "jax_halves_the_variances_derivative",
        "backends/jax.py",
        "jnp.sum(2.0 * weight * centered * dx, others)",
        "jnp.sum(weight * centered * dx, others)",
        only(f"{DERIVATIVES}::test_second_order_is_that_of_the_oracle"),
    ),
    Mutant(
        "jax_ignores_weights_in_gradients",
        "backends/jax.py",
        "weight = weight * jnp.where(weights > 0, weights, 0.0)",
        "weight = weight * jnp.where(weights > 0, 1.0, 0.0)",
        gradients("weights"),
    ),
    Mutant(
        "jax_gives_padding_a_gradient",
        "backends/jax.py",
        "        dy = jnp.where(harmless, dy, 0.0)\n",
        "        pass\n",
        combination("poison"),
    ),
    Mutant(
        "jax_keeps_more_than_the_inputs",
        "backends/jax.py",
        "tangent = jax.checkpoint(functools.partial(_tangent, axes, epsilon))",
        "tangent = functools.partial(_tangent, axes, epsilon)",
        only("tests/test_memory.py::test_the_inputs_alone_are_kept"),
    ),
    Mutant(
        "jax_differentiates_its_moments",
        "backends/jax.py",
        "    x = jax.lax.stop_gradient(x)\n",
        "    x = x + 0\n",
        survivors("test_no_gradient_flows_through_the_statistics"),
    ),
    Mutant(
        "jax_is_always_the_first_replica",
        "backends/jax.py",
        "        jax.lax.axis_index(axis_name),\n",
        "        0,\n",
        only(f"{BACKEND}/test_jax.py::test_a_named_axis_is_that_of_the_replicas"),
    ),
    Mutant(
        "jax_knows_no_traced_values",
        "backends/jax.py",
        "return isinstance(value, jax.core.Tracer)",
        "return False",
        only(f"{BACKEND}/test_jax.py::test_traced_values_are_known"),
    ),
    Mutant(
        "jax_does_not_zero_share",
        "batch_normalization.py",
        "share = 1.0 / ops.where(usable, batch.count, infinity)",
        "share = 1.0 / batch.count",
        combination("traced_false"),
        backend="jax",
    ),
]

TENSORFLOW = [
    Mutant(
        "tensorflow_divides_after_the_sum",
        "backends/tensorflow.py",
        "mean = _sum(values, channels, in_blocks, factor=1.0 / n)",
        "mean = _sum(values, channels, in_blocks) / n",
        accuracy("images-xla_renorm-native"),
    ),
    Mutant(
        "tensorflow_rounds_the_mean",
        "backends/tensorflow.py",
        "large = tf.reduce_any(tf.square(mean) > _LARGE**2 * variance)",
        "large = tf.reduce_any(tf.square(mean) < 0.0)",
        accuracy("rows-plain-native"),
    ),
    Mutant(
        "tensorflow_normalizes_by_x_a_b",
        "backends/tensorflow.py",
        "    centered = _widened(values) - _along(shift, values, channels)\n"
        "    return tf.cast(centered * scale + offset, values.dtype)\n",
        "    offset = offset - _along(shift, values, channels) * scale\n"
        "    return tf.cast(_widened(values) * scale + offset, values.dtype)\n",
        accuracy("rows-unknown_sizes-native"),
    ),
    Mutant(
        "tensorflow_folds_a_large_mean",
        "backends/tensorflow.py",
        "large = tf.abs(mean) > _FOLDABLE * tf.sqrt(variance + epsilon)",
        "large = tf.abs(mean) < 0.0",
        only(f"{BACKEND}/test_tensorflow.py::test_compiled_outputs_keep_their_digits"),
    ),
    Mutant(
        "tensorflow_is_unbiased_in_16_bits",
        "backends/tensorflow.py",
        "variance * (tf.maximum(n - 1.0, 1.0) / n)",
        "variance",
        outputs("mixed_bfloat16_rows"),
    ),
    Mutant(
        "tensorflow_adds_the_gradient_of_the_variance",
        "backends/tensorflow.py",
        "dx -= weight * first + (weight * x_hat) * second",
        "dx -= weight * first - (weight * x_hat) * second",
        gradients("mask"),
    ),
    Mutant(
        "tensorflow_multiplies_0_by_infinity",
        "backends/tensorflow.py",
        "per_element(tf.where(share > 0, vector, tf.zeros_like(vector)))",
        "per_element(vector)",
        only(
            f"{BACKEND}/test_tensorflow.py::"
            "test_a_channel_without_statistics_has_the_gradient_of_inference"
        ),
    ),
    Mutant(
        "tensorflow_is_once_differentiable_in_the_mean",
        "backends/tensorflow.py",
        "        mean += first - tf.stop_gradient(first)\n",
        "",
        survivors("test_native_second_order_is_that_of_the_oracle_in_float32"),
    ),
    Mutant(
        "tensorflow_is_once_differentiable_in_the_variance",
        "backends/tensorflow.py",
        "        variance += second - tf.stop_gradient(second)\n",
        "",
        survivors("test_native_second_order_is_that_of_the_oracle_in_float32"),
    ),
    Mutant(
        "tensorflow_multiplies_weight_0_by_infinity",
        "backends/tensorflow.py",
        "return values if weights is None else tf.where(weights > 0, values, 0.0)",
        "return values",
        survivors("test_what_padding_overflows_to_has_no_second_derivative"),
    ),
    Mutant(
        "tensorflow_gives_padding_a_gradient",
        "backends/tensorflow.py",
        "        dx = tf.where(harmless, dy, 0.0)\n",
        "",
        combination("poison"),
    ),
    Mutant(
        "tensorflow_fuses_what_does_not_fit",
        "backends/tensorflow.py",
        "fits = tf.reduce_all((share > 0) & (mean == 0))",
        "fits = tf.constant(True)",
        only(
            f"{BACKEND}/test_tensorflow.py::"
            "test_a_channel_without_statistics_has_the_gradient_of_inference",
            *accuracy("rows-plain-native"),
        ),
    ),
    Mutant(
        "tensorflow_drops_the_tail_of_blocks",
        "backends/tensorflow.py",
        "            total += tf.reduce_sum(rows[full:], axis=0)\n",
        "",
        outputs("few_channels_odd", implementation="generic"),
    ),
    Mutant(
        "tensorflow_drops_the_tail_of_rows",
        "backends/tensorflow.py",
        "return tf.reduce_sum(parts, axis=0) + tf.reduce_sum(tail * factor, axis=0)",
        "return tf.reduce_sum(parts, axis=0)",
        outputs("few_channels_odd", "many_rows"),
    ),
    Mutant(
        "tensorflow_recomputes_as_if_first",
        "backends/tensorflow.py",
        '        if frame.f_code.co_name == "inner_recompute_grad":\n',
        "        if False:\n",
        only(f"{BACKEND}/test_tensorflow.py::test_recomputing_is_seen"),
    ),
]


def on(backend, mutants):
    """The same rows on another backend."""
    return [replace(mutant, backend=backend) for mutant in mutants]


MUTANTS = [
    *STEPS,
    *LAYER,
    *GENERIC,
    *TORCH,
    *TOOLS,
    *on("jax", JAX),
    *on("tensorflow", TENSORFLOW),
]
