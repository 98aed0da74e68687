import json
import math
import operator
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from torchmor.engine.errors import FileFormatError, UnsupportedOperationError
from torchmor.engine.expressions import (
    MOST_INSTRUCTIONS,
    PARAMETERS,
    PRIMITIVES,
    Expression,
    Instruction,
    apply_primitive,
)
from torchmor.engine.functions import VALUES, derivatives

A, B = Expression.argument(0, 2), Expression.argument(1, 2)
LOGICAL = {"logical_and", "logical_or", "logical_not"}
COMPARISONS = {"gt", "ge", "lt", "le", "eq", "ne"}
CONSTANTS = st.sampled_from([-2.0, -0.5, -0.0, 0.0, 0.1, 1.0, 3.0, 1e-30, math.inf])
# What Python does with the infix operators of a text.
INFIX = {"add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv}
TABLE = VALUES | INFIX | {"pow": operator.pow}


def parameters(draw, name):
    values = {
        p: draw(st.sampled_from(["none", "tanh"]) if p == "approximate" else st.floats(0.125, 2.0))
        for p in PARAMETERS.get(name, ())
        if draw(st.booleans())
    }
    return values or ({"min": 0.25} if name == "clamp" else {})


@st.composite
def expressions(draw, arity=2):
    """An expression of any primitives; truth values go only to where and the logical ones."""
    floats = [Expression.argument(i, arity) for i in range(arity)]
    truths = [apply_primitive("gt", [floats[0], 0.25])]
    last = floats[-1]
    for name in draw(st.lists(st.sampled_from(sorted(set(PRIMITIVES) - {"identity"})), max_size=6)):
        number = st.sampled_from(floats)
        if name in LOGICAL:
            operands = [draw(st.sampled_from(truths)) for _ in range(PRIMITIVES[name])]
        elif name == "where":
            operands = [draw(st.sampled_from(truths)), draw(number), draw(number | CONSTANTS)]
        else:
            operands = [draw(number | CONSTANTS) for _ in range(PRIMITIVES[name] - 1)]
            operands.insert(draw(st.integers(0, len(operands))), draw(number))
        last = apply_primitive(name, operands, parameters(draw, name))
        (truths if name in LOGICAL | COMPARISONS else floats).append(last)
    return last


def values(expression, *arguments):
    with np.errstate(all="ignore"):
        return expression.evaluate(TABLE, arguments)


def points(count=2):
    return np.random.default_rng(0).normal(size=(count, 50)) * 3


# --- building and evaluating


def test_evaluates_with_any_table():
    gate = apply_primitive("mul", [A, apply_primitive("sigmoid", [B])])
    assert gate == Expression(2, (Instruction("sigmoid", ("%1",)), Instruction("mul", ("%0", "%2"))))
    table = {"sigmoid": lambda x: 1 / (1 + math.exp(-x)), "mul": lambda x, y: x * y}
    assert gate.evaluate(table, [3.0, 0.0]) == 1.5


def test_of_takes_the_arguments_in_order():
    assert Expression.of("tanh") == Expression(1, (Instruction("tanh", ("%0",)),))
    assert Expression.of("where").instructions[0].operands == ("%0", "%1", "%2")
    leaky = Expression.of("leaky_relu", negative_slope=1)
    assert leaky.instructions[0].parameters == (("negative_slope", 1.0),)
    assert Expression.of("clamp", min=None, max=2.0) == Expression.of("clamp", max=2.0)


@pytest.mark.parametrize(("index", "arity"), [(0, 1), (0, 3), (1, 3), (2, 3)])
def test_argument_is_a_projection(index, arity):
    arguments = [10.0 * i for i in range(arity)]
    assert Expression.argument(index, arity).evaluate(VALUES, arguments) == arguments[index]


@given(outer=expressions(2), first=expressions(3), second=expressions(3))
def test_substitute_composes(outer, first, second):
    """``φ.substitute(e).evaluate(table, a) == φ.evaluate(table, [e_i.evaluate(table, a) …])``"""
    a = points(3)
    inner = [values(e, *a) for e in (first, second)]
    assume(not any(np.asarray(v).dtype == bool for v in inner))
    np.testing.assert_array_equal(values(outer.substitute([first, second]), *a), values(outer, *inner))


@given(expression=expressions(2))
def test_with_arguments_renumbers(expression):
    a = points(4)
    np.testing.assert_array_equal(values(expression.with_arguments([3, 1], 4), *a), values(expression, a[3], a[1]))
    np.testing.assert_array_equal(values(expression.with_arguments([2, 2], 4), *a), values(expression, a[2], a[2]))


@given(expression=expressions())
def test_no_instruction_occurs_twice(expression):
    twice = apply_primitive("maximum", [expression, apply_primitive("minimum", [expression, A])])
    assert len({repr(i) for i in twice.instructions}) == len(twice.instructions)
    assert len(twice.instructions) <= len(expression.instructions) + 2


def test_common_parts_are_shared():
    def gate():
        return apply_primitive("sigmoid", [apply_primitive("add", [A, B])])

    fused = apply_primitive("mul", [gate(), apply_primitive("tanh", [gate()])])
    assert [i.function for i in fused.instructions] == ["add", "sigmoid", "tanh", "mul"]
    merged = apply_primitive("sub", [A, B]).with_arguments([1, 1], 2)
    assert merged.instructions == (Instruction("sub", ("%1", "%1")),)


def test_other_parameters_are_not_shared():
    slopes = [apply_primitive("leaky_relu", [A], {"negative_slope": slope}) for slope in (0.1, 0.2)]
    assert apply_primitive("sub", slopes).evaluate(VALUES, [-1.0, 0.0]) == pytest.approx(0.1)


def test_zeros_of_either_sign_are_not_shared():
    expression = apply_primitive("sub", [apply_primitive("atan2", [A, z]) for z in (0.0, -0.0)])
    assert len(expression.instructions) == 3
    assert expression.evaluate(VALUES, [0.0, 0.0]) == -np.pi


def test_identities_leave_no_trace():
    assert apply_primitive("tanh", [Expression.argument(0, 3)]).instructions == (Instruction("tanh", ("%0",)),)
    assert apply_primitive("identity", [apply_primitive("tanh", [B])]) == apply_primitive("tanh", [B])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Expression.of("sine"), "expected a primitive, got 'sine'; known are identity, neg"),
        (lambda: Expression(0, ()), "at least one argument, got arity 0"),
        (lambda: Expression(1, (Instruction("tanh", ("%1",)),)), r"in %0 … %0, got '%1'"),
        (lambda: Expression(1, (Instruction("tanh", ("%-1",)),)), "got '%-1'"),
        (lambda: Expression(1, (Instruction("mul", ("%0",)),)), "expected 2 operands of mul"),
        (lambda: Expression(1, (Instruction("mul", (2.0, 3.0)),)), "not all constant"),
        (lambda: Expression.of("tanh", slope=1.0), "got 'slope'"),
        (lambda: Expression.of("gelu", approximate="erf"), "approximate, got 'erf'"),
        (lambda: Expression.of("clamp"), "expected min or max"),
        (lambda: Expression.argument(2, 2), r"expected an argument in 0 … 1, got 2"),
        (lambda: apply_primitive("mul", [2.0, 3.0]), "expected 2 operands"),
        (lambda: apply_primitive("tanh", [A, B]), "expected 1 operands"),
        (lambda: apply_primitive("mul", [A, Expression.argument(0, 3)]), r"of arities \[2, 3\]"),
    ],
)
def test_refuses_what_is_no_expression(build, message):
    with pytest.raises(ValueError, match=message):
        build()


# --- JSON


@given(expression=expressions())
def test_json_round_trip(expression):
    """``Expression.from_json(e.to_json()) == e``"""
    again = Expression.from_json(json.loads(json.dumps(expression.to_json(), allow_nan=False)))
    assert repr(again) == repr(expression)
    assert again == expression
    assert hash(again) == hash(expression)


def test_json_is_plain():
    assert apply_primitive("clamp", [apply_primitive("mul", [B, 2.0])], {"max": math.inf}).to_json() == {
        "arity": 2,
        "instructions": [
            {"function": "mul", "operands": ["%1", 2.0], "parameters": {}},
            {"function": "clamp", "operands": ["%2"], "parameters": {"max": "inf"}},
        ],
    }


def entry(function="tanh", operands=("%0",), **parameters):
    return {"function": function, "operands": list(operands), "parameters": parameters}


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {},
        {"arity": 1},
        {"arity": 1, "instructions": [], "more": 0},
        {"arity": "1", "instructions": []},
        {"arity": True, "instructions": []},
        {"arity": 1.0, "instructions": []},
        {"arity": 0, "instructions": []},
        {"arity": 1, "instructions": {}},
        {"arity": 1, "instructions": ["tanh"]},
        {"arity": 1, "instructions": [{"function": "tanh", "operands": ["%0"]}]},
        {"arity": 1, "instructions": [entry() | {"operands": "%0"}]},
        {"arity": 1, "instructions": [entry() | {"parameters": []}]},
        *(
            {"arity": 1, "instructions": [instruction]}
            for instruction in [
                entry("__import__"),
                entry(["tanh"]),
                entry(operands=[]),
                entry(operands=["%1"]),
                entry(operands=["%-1"]),
                entry(operands=["%00"]),
                entry(operands=["%0 "]),
                entry(operands=["0"]),
                entry(operands=[0.0]),
                entry(operands=[["%0"]]),
                entry("mul", ["%0", True]),
                entry("mul", ["%0", None]),
                entry("mul", ["%0", 10**400]),
                entry("mul", ["%0"]),
                entry(slope=1.0),
                entry("leaky_relu", negative_slope="steep"),
                entry("leaky_relu", negative_slope=None),
                entry("gelu", approximate="erf"),
                entry("gelu", approximate=1.0),
                entry("clamp"),
            ]
        ),
    ],
)
def test_malformed_json_is_refused(data):
    with pytest.raises(FileFormatError, match=r"damaged or unknown expression: .+; save it again"):
        Expression.from_json(data)


@given(
    data=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.fixed_dictionaries({"arity": inner, "instructions": inner})
            | st.fixed_dictionaries({"function": inner, "operands": inner, "parameters": inner})
        ),
        max_leaves=8,
    )
)
def test_any_json_is_an_expression_or_refused(data):
    try:
        expression = Expression.from_json(data)
    except FileFormatError:
        return
    assert Expression.from_json(expression.to_json()) == expression


# --- text


def infix(name, *operands, **parameters):
    return apply_primitive(name, operands, parameters)


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        (A, "a"),
        (infix("tanh", A), "tanh(a)"),
        (infix("mul", A, infix("sigmoid", B)), "a * sigmoid(b)"),
        (infix("leaky_relu", A, negative_slope=0.1), "leaky_relu(a, negative_slope=0.1)"),
        (infix("clamp", A, min=-1.0, max=2.0), "clamp(a, max=2, min=-1)"),
        (infix("gelu", A, approximate="tanh"), "gelu(a, approximate='tanh')"),
        (infix("where", infix("gt", A, 0.0), A, infix("mul", 0.5, B)), "where(gt(a, 0), a, 0.5 * b)"),
        (infix("add", infix("add", A, B), A), "a + b + a"),
        (infix("add", A, infix("add", A, B)), "a + (a + b)"),
        (infix("sub", A, infix("sub", A, B)), "a - (a - b)"),
        (infix("sub", infix("mul", A, B), infix("div", A, B)), "a * b - a / b"),
        (infix("mul", infix("add", A, B), -2.0), "(a + b) * -2"),
        (infix("div", A, infix("mul", A, B)), "a / (a * b)"),
        (infix("neg", infix("pow", A, 2.0)), "-a ** 2"),
        (infix("pow", infix("neg", A), 2.0), "(-a) ** 2"),
        (infix("pow", -2.0, A), "(-2) ** a"),
        (infix("pow", A, infix("neg", B)), "a ** -b"),
        (infix("pow", infix("pow", A, B), B), "(a ** b) ** b"),
        (infix("pow", A, infix("pow", A, B)), "a ** a ** b"),
        (infix("neg", infix("mul", A, B)), "-(a * b)"),
        (infix("mul", infix("neg", A), B), "-a * b"),
    ],
)
def test_text(expression, text):
    assert expression.text(["a", "b"]) == text
    assert expression.text(["x1", "g"]) == "".join({"a": "x1", "b": "g"}.get(w, w) for w in re.split(r"\b", text))


@given(expression=expressions())
def test_text_evaluates_to_the_same_value(expression):
    a, b = points()
    parts = dict(VALUES, a=a, b=b, inf=math.inf)
    with np.errstate(all="ignore"):
        exec("\n".join(expression.statements(["a", "b"], "value", "part")), parts)
    np.testing.assert_array_equal(parts["value"], values(expression, a, b))


def tower(height):
    """A function of which every floor reads the one below twice: without sharing, 2^height parts."""
    x = A
    for _ in range(height):
        x = infix("mul", x, infix("sigmoid", x))
    return x


def test_shared_parts_are_written_once():
    assert tower(2).text(["a", "b"]) == "p1 = a * sigmoid(a); p1 * sigmoid(p1)"
    assert tower(2).text(["a", "p1"], "g") == "p_1 = a * sigmoid(a); g = p_1 * sigmoid(p_1)"
    assert tower(2).statements(["a", "b"], "g1", "g1_") == ["g1_1 = a * sigmoid(a)", "g1 = g1_1 * sigmoid(g1_1)"]
    moved = Expression(1, (*tower(1).with_arguments([0, 0], 1).instructions, Instruction("identity", ("%2",))))
    doubled = Expression(1, (*moved.instructions, Instruction("mul", ("%3", "%3"))))
    assert doubled.text(["a"]) == "p1 = a * sigmoid(a); p1 * p1", "whatever it is called"


def test_texts_and_statements_are_short():
    long = tower(300)
    assert len(long.text(["a", "b"])) < 600 and " … " in long.text(["a", "b"])
    assert len(str(long.statements(["a", "b"], "g", "p"))) < 20_000
    nested = A
    for _ in range(300):
        nested = infix("tanh", nested)
    assert max(map(len, nested.statements(["a", "b"], "g", "p"))) < 150


def test_high_towers_are_as_cheap_as_they_are_long():
    """Everything walks over instructions, not over paths, and without recursion."""
    long = tower(150)
    assert Expression.from_json(json.loads(json.dumps(long.to_json()))) == long and hash(long) == hash(tower(150))
    with np.errstate(all="ignore"):
        assert np.isfinite(long.evaluate(VALUES, [np.ones(1), np.ones(1)])).all()
        assert len(derivatives(long, [np.ones(1), np.ones(1)])) == 2


def test_endless_functions_are_refused():
    program = tuple(Instruction("tanh", (f"%{i}",)) for i in range(MOST_INSTRUCTIONS + 1))
    message = f"at most {MOST_INSTRUCTIONS} operations and arguments, got {MOST_INSTRUCTIONS + 1} operations of 1: "
    with pytest.raises(UnsupportedOperationError, match=message):
        Expression(1, program)
    long = {"arity": 1, "instructions": [entry(operands=i.operands) for i in program]}
    for data in (long, {"arity": 10**9, "instructions": []}):
        with pytest.raises(FileFormatError, match="damaged or unknown expression: expected a componentwise function"):
            Expression.from_json(data)


@pytest.mark.parametrize("wrong", ["x" * 10**5, ["%0"] * 10**5, {str(i): 0 for i in range(10**4)}])
def test_messages_are_short_whatever_the_file_holds(wrong):
    for data in (wrong, {"arity": 1, "instructions": wrong}, {"arity": 1, "instructions": [wrong]}):
        with pytest.raises(FileFormatError) as error:
            Expression.from_json(data)
        assert len(str(error.value)) < 1000
    for one in (entry(wrong), entry(operands=wrong), entry("gelu", approximate=wrong), entry("gelu") | {"x": wrong}):
        with pytest.raises(FileFormatError) as error:
            Expression.from_json({"arity": 1, "instructions": [one]})
        assert len(str(error.value)) < 1500


def test_needs_python_only():
    block = "import sys; sys.modules.update(dict.fromkeys(['numpy', 'scipy', 'torch', 'pymor']))"
    subprocess.run([sys.executable, "-c", f"{block}; import torchmor.engine.expressions"], check=True)
