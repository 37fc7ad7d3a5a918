"""Spaces as KerasTuner's hyperparameters, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from search_spaces.space import Choices, Decision, Space

if TYPE_CHECKING:
    import keras_tuner

AGAIN = "#"  # before the number of a hyperparameter whose name was met before


def to_hyperparameters(space: Space) -> keras_tuner.HyperParameters:
    """A `Choice` for each decision, a `Fixed` for one of a single value, a `Boolean` for yes or no,
    under the conditions that nested `conditional_scope`s give. Numbers of mixed kinds become
    floats."""
    import keras_tuner
    from keras_tuner.engine.hyperparameters import Boolean, Choice, Fixed
    from keras_tuner.src.engine.conditions import Parent

    found = keras_tuner.HyperParameters()
    conditions: dict[str, list[Parent]] = {}  # an ancestor's come first
    for decision in space.decisions:
        values, own = _of_one_kind(decision.values), []
        for parent, allowed in decision.when.items():
            kind = type(_of_one_kind(space.decisions[space.column[parent]].values)[0])
            own += [each for each in conditions[parent] if each not in own]
            own.append(Parent(parent, [kind(value) for value in allowed]))
        conditions[decision.name] = own
        if len(values) == 1:
            hp = Fixed(decision.name, values[0], conditions=own)
        elif values == [False, True]:
            hp = Boolean(decision.name, conditions=own)
        else:
            hp = Choice(decision.name, values, ordered=decision.ordered, conditions=own)
        found.merge([hp])
    return found


def to_space(hyperparameters: keras_tuner.HyperParameters) -> Space:
    """A decision for each hyperparameter. A `Float` without a step has the ten values that
    KerasTuner's grid search gives it.

    A name used again under other conditions becomes `name#1`, and so on. Raises ValueError where
    there is no hyperparameter.
    """
    from keras_tuner.engine.hyperparameters import Choice, Fixed

    decisions: dict[str, Decision] = {}
    for hp in hyperparameters.space:
        when: dict[str, tuple] = {}
        for condition in hp.conditions:
            parent = decisions.get(condition.name)
            known = when.get(condition.name, parent.values if parent else ())
            when[condition.name] = tuple(value for value in known if value in condition.values)
        if not all(when.values()):
            continue  # under a condition that nothing fulfils
        if isinstance(hp, Fixed):
            values = (hp.value,)
        elif isinstance(hp, Choice):
            values = tuple(hp.values)
        else:  # KerasTuner lists some of them in another order
            values = tuple(sorted(set(hp.values)))
        n_before = sum(name.split(AGAIN)[0] == hp.name for name in decisions)
        name = f"{hp.name}{AGAIN}{n_before}" if n_before else hp.name
        decisions[name] = Decision(name, values, when)
    if not decisions:
        raise ValueError("the hypermodel has no hyperparameters, so there is nothing to search")
    return Space(list(decisions.values()))


def to_values(choices: Choices) -> dict[str, Any]:
    """Choices of a space of `to_space` as KerasTuner's values."""
    return {name.split(AGAIN)[0]: value for name, value in choices.items()}


def to_choices(space: Space, values: dict[str, Any]) -> Choices:
    """KerasTuner's values as choices of the space; those of other names are left out."""
    choices: Choices = {}
    for decision in space.decisions:
        on = all(choices.get(parent) in allowed for parent, allowed in decision.when.items())
        name = decision.name.split(AGAIN)[0]
        if on and name in values:
            choices[decision.name] = decision.values[decision.index(values[name])]
    return choices


def _of_one_kind(values: tuple) -> list:
    kinds = {type(value) for value in values}
    if len(kinds) == 1:
        return list(values)
    return [float(v) for v in values] if kinds == {int, float} else [str(v) for v in values]
