"""Rewriting of the user's source: what computes asks a recorder, and everything else stays what it is.

    y = x @ w + b[i]        y = add(matmul(x, w), getitem(b, i))
    z = library.f(y, n=3)   z = pick(library.f)(y, n=3)
    k = i * 3               k = i * 3 if type(i) in plain else mul(i, 3)

The recorder's functions are constants of the new code objects, in which marks stand for them at first: no name is added to the
program, and cells, `super()`, private names and line numbers are the compiler's, as before. Python's order of evaluation is
kept, every expression is evaluated once, and a call is made from the user's own frame. The one trace that a program could find
is the local variable `@entered`.
"""

import ast
import copy
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from types import CodeType
from typing import Any

from ..run.runnable import FunctionKey


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_MARK = "\0recorder "  # begins the constants that the recorder's functions take the place of
_ENTERED = "@entered"  # a local variable that no program can name
_OPERATORS = {
    **{ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.MatMult: "matmul", ast.Div: "truediv", ast.FloorDiv: "floordiv"},
    **{ast.Mod: "mod", ast.Pow: "pow", ast.LShift: "lshift", ast.RShift: "rshift"},
    **{ast.BitOr: "or_", ast.BitXor: "xor", ast.BitAnd: "and_", ast.USub: "neg", ast.UAdd: "pos", ast.Invert: "invert"},
    **{ast.Lt: "lt", ast.LtE: "le", ast.Eq: "eq", ast.NotEq: "ne", ast.Gt: "gt", ast.GtE: "ge"},
}
# Calls of these names pass arrays by; leaving them alone saves time and nothing else.
_PLAIN_FUNCTIONS = _words("""isinstance issubclass len type range print super hasattr getattr setattr repr str int float bool
    ord chr id dict hash callable iter next open format input locals globals vars dir eval exec""")
_PLAIN_METHODS = _words("""append extend join split strip startswith endswith items keys encode decode lower upper casefold
    setdefault group""")
_COMPILES = re.compile(r"\b(n?jit|vectorize|guvectorize|stencil|cfunc|overload\w*)\b")  # decorators that read the bytecode
_LOOKS_AT_LOCALS = {"locals", "vars", "dir", "eval", "exec"}


class _Rewriter(ast.NodeTransformer):
    """Puts marks where the recorder shall be asked. Locations stay, so that tracebacks do."""

    def __init__(self, module: ast.Module):
        self._timed = False  # the function's time is taken: it holds `_ENTERED`
        self._guarded = False  # inside of an expression whose names are looked at already
        self._plain_names = _PLAIN_FUNCTIONS | _plain_names(module)

    def _ask(self, name: str, *arguments: ast.expr, at: ast.AST) -> ast.Call:
        return ast.copy_location(ast.Call(ast.Constant(_MARK + name), list(arguments), []), at)

    def _statement(self, value: ast.expr) -> ast.Expr:
        return ast.copy_location(ast.Expr(value), value)

    def _is_plain(self, name: ast.Name) -> ast.Compare:
        test = ast.Compare(self._ask("type", name, at=name), [ast.In()], [ast.Constant(f"{_MARK}plain")])
        return ast.copy_location(test, name)

    def _unless_plain(self, node: ast.expr, names: Iterable[ast.Name], asked: ast.expr) -> ast.expr:
        """`node` where it is about plain values only: a look at a type is quicker than a call."""
        tests = [self._is_plain(name) for name in {name.id: name for name in names}.values()]
        test = ast.BoolOp(ast.And(), tests) if len(tests) > 1 else tests[0]
        return ast.copy_location(ast.IfExp(ast.copy_location(test, node), node, asked), node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        match node.func:
            case ast.Name(name) | ast.Attribute(ast.Name(name)) if name in self._plain_names:
                return node
            case ast.Attribute(attr=name) if name in _PLAIN_METHODS:
                return node
        node.func = self._ask("pick", node.func, at=node.func)
        return node

    def visit_BinOp(self, node: ast.BinOp | ast.UnaryOp | ast.Compare) -> ast.AST:
        """Operators; of names and constants alone, a whole expression of them at once."""
        leaves = None if self._guarded else _leaves(node)
        names = [leaf for leaf in leaves or () if isinstance(leaf, ast.Name)]
        if leaves and not names:
            return node  # the compiler computes it
        if names:
            self._guarded = True
            asked = self.visit(copy.deepcopy(node))
            self._guarded = False
            return self._unless_plain(node, names, asked)
        self.generic_visit(node)
        match node:
            case ast.BinOp(left, op, right):
                operands = [left, right]
            case ast.UnaryOp(op, operand):
                operands = [operand]
            case ast.Compare(left, [op], [right]):
                operands = [left, right]
            case _:  # a chain of comparisons takes the truth of each: no arrays there
                return node
        is_text = any(
            isinstance(side, ast.JoinedStr) or isinstance(getattr(side, "value", 0), str | bytes) for side in operands
        )
        if type(op) not in _OPERATORS or (is_text and isinstance(node, ast.BinOp)):
            return node
        return self._ask(_OPERATORS[type(op)], *operands, at=node)

    visit_UnaryOp = visit_Compare = visit_BinOp

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        self.generic_visit(node)
        if not isinstance(node.ctx, ast.Load):
            return node
        asked = self._ask("getitem", node.value, self._index(node.slice), at=node)
        match node:
            case ast.Subscript(ast.Name() as name, ast.Name() | ast.Constant()):
                return self._unless_plain(node, [name], asked)
        return asked

    def _index(self, node: ast.expr) -> ast.expr:
        if isinstance(node, ast.Slice):
            return self._ask("slice", *(part or ast.Constant(None) for part in (node.lower, node.upper, node.step)), at=node)
        if isinstance(node, ast.Tuple):
            node.elts = [self._index(element) for element in node.elts]
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        self.generic_visit(node)
        match node.targets:
            case [ast.Subscript(value=container, slice=index)]:  # Python evaluates the value first, then these
                return self._statement(self._ask("setitem", node.value, container, self._index(index), at=node))
        return node

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        value, target = self.visit(node.value), self.generic_visit(node.target)
        name = f"i{_OPERATORS[type(node.op)].rstrip('_')}"
        node.value = value
        match target:
            case ast.Name(variable):  # `s += t` of texts is quick only as it stands
                old = ast.copy_location(ast.Name(variable, ast.Load()), target)
                new = ast.Assign([target], self._ask(name, old, value, at=node))
                return ast.copy_location(ast.If(self._is_plain(old), [node], [ast.copy_location(new, node)]), node)
            case ast.Attribute(attr=attribute) if attribute.startswith("__"):  # its name is mangled
                return node
            case ast.Attribute(value=container, attr=attribute):
                how, key = "attribute", ast.Constant(attribute)
            case ast.Subscript(value=container, slice=index):
                how, key = "item", self._index(index)
        # The container and the old value come before the new one is evaluated, and each of them once.
        loaded = ast.Starred(self._ask(f"load_{how}", container, key, at=target), ast.Load())
        return self._statement(self._ask(f"store_{how} {name}", ast.copy_location(loaded, target), value, at=node))

    def visit_For(self, node: ast.For) -> ast.AST:
        self.generic_visit(node)
        node.iter = self._loop(node.iter)
        return node

    def visit_comprehension(self, node: ast.comprehension) -> ast.AST:
        self.generic_visit(node)
        if not node.is_async:
            node.iter = self._loop(node.iter)
        return node

    def _loop(self, over: ast.expr) -> ast.expr:
        match over:
            case ast.Call(ast.Name(name)) if name in _PLAIN_FUNCTIONS:
                return over
            case ast.Constant() | ast.Tuple() | ast.List() | ast.Dict() | ast.Set():
                return over
        return self._ask("iterate", over, at=over)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        """The body only: decorators, defaults and annotations are evaluated once, in another scope."""
        if any(_COMPILES.search(ast.unparse(decorator)) for decorator in node.decorator_list):
            return node
        outer = self._timed
        own = list(_own_nodes(node.body))
        suspends = any(isinstance(inner, ast.Yield | ast.YieldFrom | ast.Await) for inner in own)
        names = {inner.id for inner in own if isinstance(inner, ast.Name)}
        self._timed = not (isinstance(node, ast.AsyncFunctionDef) or suspends or names & _LOOKS_AT_LOCALS)
        first, start = node.body[0], 1 if ast.get_docstring(node, clean=False) is not None else 0
        body = self.generic_visit(ast.Module(node.body[start:], [])).body
        enter = self._ask("enter", _parameters(node.args), at=first)
        if self._timed:
            entered = ast.Assign([ast.Name(_ENTERED, ast.Store())], enter)
            leave = self._leave(ast.Constant(None), at=node.body[-1])
            body = [ast.copy_location(entered, first), *body, self._statement(leave)]
        else:
            body = [self._statement(enter), *body]
        node.body[start:] = body
        self._timed = outer
        return node

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        if not any(isinstance(inner, ast.Yield | ast.YieldFrom | ast.Await) for inner in _own_nodes([node.body])):
            enter = self._ask("enter", _parameters(node.args), at=node.body)
            node.body = self._ask("leave", enter, self.visit(node.body), at=node.body)
        return node

    def visit_Return(self, node: ast.Return) -> ast.AST:
        self.generic_visit(node)
        if self._timed:
            node.value = self._leave(node.value or ast.Constant(None), at=node.value or node)
        elif node.value:
            node.value = self._ask("give", node.value, at=node.value)
        return node

    def _leave(self, value: ast.expr, at: ast.AST) -> ast.expr:
        entered = ast.Name(_ENTERED, ast.Load())
        leave = self._ask("leave", entered, value, at=at)
        if isinstance(value, ast.Constant):  # nothing to look at: asked only where the time is of interest
            leave = ast.IfExp(ast.Compare(entered, [ast.Is()], [ast.Constant(None)]), value, leave)
        return ast.copy_location(leave, at)

    def visit_Yield(self, node: ast.Yield) -> ast.AST:
        self.generic_visit(node)
        if node.value:
            node.value = self._ask("give", node.value, at=node.value)
        return node

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> ast.AST:
        self.generic_visit(node)
        node.body.insert(0, self._statement(self._ask("clean", at=node.body[0])))
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        methods = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        node.body = [self.visit(inner) if isinstance(inner, methods) else inner for inner in node.body]
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.value = node.value and self.visit(node.value)
        return node

    def visit_TypeAlias(self, node: ast.AST) -> ast.AST:
        return node


def _leaves(node: ast.expr) -> list[ast.expr] | None:
    """The names and constants of an arithmetic expression; None if there is anything else in it."""
    match node:
        case ast.Name() | ast.Constant(int() | float() | complex()):
            return [node]
        case ast.BinOp(left, _, right) | ast.Compare(left, [_], [right]):
            sides = _leaves(left), _leaves(right)
            return None if None in sides else sides[0] + sides[1]
        case ast.UnaryOp(op, operand) if not isinstance(op, ast.Not):
            return _leaves(operand)
    return None


def _plain_names(module: ast.Module) -> frozenset[str]:
    """Names of what a module defines or imports from the standard library: none of it computes on arrays."""
    names = {
        node.name
        for node in module.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.decorator_list
    }
    plain = sys.stdlib_module_names - {"operator"}
    for node in ast.walk(module):
        match node:
            case ast.Import(aliases):
                names |= {a.asname or a.name.partition(".")[0] for a in aliases if a.name.partition(".")[0] in plain}
            case ast.ImportFrom(str(source), aliases, 0) if source.partition(".")[0] in plain:
                names |= {a.asname or a.name for a in aliases}
    return frozenset(names)


def _own_nodes(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """What a function's body holds, without the functions and classes in it."""
    stack = list(body)
    while stack:
        node = stack.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            stack += ast.iter_child_nodes(node)


def _parameters(arguments: ast.arguments) -> ast.Tuple:
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    return ast.Tuple([ast.Name(argument.arg, ast.Load()) for argument in every if argument], ast.Load())


def rewritten(source: str, filename: str) -> CodeType:
    """A module's code with marks where the recorder shall be asked; `with_recorders` puts it there.

    Raises:
        SyntaxError, ValueError, RecursionError: as `compile` does.
    """
    module = ast.parse(source, filename)
    rewriter = _Rewriter(module)
    rewriter.generic_visit(module)
    start = next((i for i, node in enumerate(module.body) if not _must_come_first(node)), len(module.body))
    enter = rewriter._ask("enter", ast.Tuple([], ast.Load()), at=ast.Pass(lineno=1, col_offset=0))
    module.body.insert(start, ast.Expr(enter))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # calls of constants; and what the plain compilation has warned of already
        return compile(ast.fix_missing_locations(module), filename, "exec", dont_inherit=True)


def _must_come_first(node: ast.stmt) -> bool:
    match node:
        case ast.Expr(ast.Constant(str())) | ast.ImportFrom(module="__future__"):
            return True
    return False


def twins(plain: CodeType, rewritten: CodeType) -> Iterator[tuple[CodeType, CodeType]]:
    """Each code object and the rewritten one, from the same place of the source, inner ones included."""
    yield plain, rewritten
    rest = [const for const in rewritten.co_consts if isinstance(const, CodeType)]
    for inner in plain.co_consts:
        if isinstance(inner, CodeType):
            i = next(i for i, twin in enumerate(rest) if FunctionKey.of(twin) == FunctionKey.of(inner))
            yield from twins(inner, rest.pop(i))


def with_recorders(code: CodeType, recorder_for: Callable[[FunctionKey], Any]) -> CodeType:
    """The code with recorders in place of the marks: each function has its own, which its comprehensions share.

    Args:
        recorder_for: makes the recorder of a function; its method `function(mark)` gives what stands for each mark.
    """
    recorders: dict[FunctionKey, Any] = {}

    def replaced(code: CodeType, recorder: Any) -> CodeType:
        is_comprehension = code.co_name.startswith("<") and code.co_name not in ("<module>", "<lambda>")
        if not is_comprehension:
            key = FunctionKey.of(code)
            recorder = recorders.get(key) or recorders.setdefault(key, recorder_for(key))
        consts = []
        for const in code.co_consts:
            if isinstance(const, CodeType):
                const = replaced(const, recorder)
            elif isinstance(const, str) and const.startswith(_MARK):
                const = recorder.function(const.removeprefix(_MARK))
            consts.append(const)
        return code.replace(co_consts=tuple(consts))

    return replaced(code, None)
