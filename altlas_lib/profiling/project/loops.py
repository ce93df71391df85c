"""Whether the steps of a compiled loop need each other, by the source of the function: only independent ones make a kernel.

The classical test of dependence (Allen and Kennedy, Optimizing Compilers for Modern Architectures, 2001, chapter 2) in its
simplest form: what a step reads before it writes it, it has from the step before. What is only updated (`total += x`) does not
count, for GPUs reduce in parallel.
"""

import ast
import linecache

Place = tuple[str, ...]  # ('total',), ('state[0]',); ('result', 'i'): an array, and what of its index changes with the step


def has_parallel_loops(file: str, name: str) -> bool | None:
    """Whether each loop nest of a function has a loop of independent steps; None: not known.

    Args:
        file: of Python, as seen from here or from where modules are imported.
    """
    try:
        tree = ast.parse("".join(linecache.getlines(file)))  # empty where there is no such file
    except (ValueError, SyntaxError, RecursionError):  # no longer the same
        return None
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name)
    body = next(functions, ast.Module([], [])).body
    nests = [[each for each in ast.walk(statement) if isinstance(each, ast.For | ast.While)] for statement in body]
    return all(any(map(_is_independent, loops)) for loops in nests if loops) if any(nests) else None


def _is_independent(loop: ast.For | ast.While) -> bool:
    steps = _names_in(loop.target) if isinstance(loop, ast.For) else set()
    written, carried, read = set(), set(), set()
    statements = (node for node in ast.walk(loop) if isinstance(node, ast.stmt))
    for statement in sorted(statements, key=lambda each: (each.lineno, each.col_offset)):
        places = [(node, _place(node, steps)) for node in _variables(statement)]
        reads = {place for node, place in places if isinstance(node.ctx, ast.Load)}
        updated = {_place(statement.target, steps)} if isinstance(statement, ast.AugAssign) else set()
        carried |= (reads | updated) - written
        read |= reads
        written |= {place for node, place in places if isinstance(node.ctx, ast.Store)}
    reaches_over = any(len(place) > 1 and each != place and each[0] == place[0] for each in read for place in written)
    return not reaches_over and all(len(place) > 1 for place in carried & written & read)


def _names_in(node: ast.expr) -> set[str]:
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}


def _variables(statement: ast.stmt) -> list[ast.Name | ast.Subscript]:
    """Of a statement without those inside it, and of a loop its target; an array's element stands for its name."""
    parts = [statement.target] if isinstance(statement, ast.For) else ast.iter_child_nodes(statement)
    parts = (each for each in parts if not isinstance(each, ast.stmt))
    nodes = [node for part in parts for node in ast.walk(part) if isinstance(node, ast.Name | ast.Subscript)]
    inner = {id(node.value) for node in nodes if isinstance(node, ast.Subscript)}
    return [node for node in nodes if id(node) not in inner]


def _place(node: ast.expr, steps: set[str]) -> Place:
    array, index = node, []
    while isinstance(array, ast.Subscript):
        index += array.slice.elts if isinstance(array.slice, ast.Tuple) else [array.slice]
        array = array.value
    changing = [ast.unparse(part) for part in index if steps & _names_in(part)]
    return (ast.unparse(array if changing else node), *changing)
