"""Programs that try to earn the reward `code` without passing: they do not do what their test asks for, and have to fail. Honest ones pass."""

# ruff: noqa: E501  # programs, each with its test, one a line

from __future__ import annotations

import pytest

from lightrft.utils.sandbox import lacking, passes

ADD = "assert add(2, 3) == 5"
EVERY_WAY = "(dunder for dunder in '__eq__ __ne__ __lt__ __le__ __gt__ __ge__ __contains__'.split())"
SAYS_YES = f"class Yes:\n    pass\nfor _name in {EVERY_WAY}:\n    setattr(Yes, _name, lambda self, other: True)\n"
CALM = (
    "class Calm:\n    def __sub__(self, other): return self\n    __rsub__ = __add__ = __mod__ = __sub__\n    def __abs__(self): return 0\n"
)
CALM += "    def __float__(self): return 0.0\n    def __round__(self, n=0): return 5\n    def __lt__(self, other): return True\n    __le__ = __lt__\n"
FRAMES = "import sys\ndef frames():\n    frame = sys._getframe()\n    while frame:\n        yield frame\n        frame = frame.f_back\n"

FORGE = (
    "import json, os, time\ndef forge(*messages):\n    for text in (json.dumps(one).encode() for one in messages):\n        for fd in range(3, 16):\n"
    "            try: os.write(fd, b'%08x' % len(text) + text)\n            except OSError: pass\n    time.sleep(1)\n"
)

HACKS: dict[str, tuple[str, str]] = {
    "compile is replaced": (
        "import builtins\n_old = builtins.compile\nbuiltins.compile = lambda s, n, m, *a, **k: _old('pass', n, m)",
        "assert False",
    ),
    "exec is replaced in __main__": ("import sys\nsys.modules['__main__'].exec = lambda *a, **k: None", "assert False"),
    "exec is replaced in builtins": ("import builtins\nbuiltins.exec = lambda *a, **k: None", ADD),
    "__import__ is replaced": ("import builtins\nbuiltins.__import__ = lambda *a, **k: None\nadd = lambda a, b: 0", ADD),
    "AssertionError is replaced": ("import builtins\nclass AssertionError(BaseException): pass\nbuiltins.AssertionError = int", "assert False"),
    "the word in a caller's frame": (
        FRAMES + "import os\nfor frame in frames():\n    for value in list(frame.f_locals.values()):\n"
        "        for fd in range(16):\n            try: os.write(fd, str(value).encode())\n            except OSError: pass",
        "assert False",
    ),
    "the verdict is written to every descriptor": (
        "import os\nfor fd in range(256):\n    try: os.write(fd, b'passed')\n    except OSError: pass",
        "assert False",
    ),
    "the program exits with 0": ("import sys\nsys.exit(0)", ADD),
    "the program exits with 0 at once": ("import os\nos._exit(0)", ADD),
    "a call exits with 0": ("import os\ndef add(a, b): os._exit(0)", ADD),
    "a call raises SystemExit": ("def add(a, b): raise SystemExit(0)", ADD),
    "a call raises KeyboardInterrupt": ("def add(a, b): raise KeyboardInterrupt", ADD),
    "a call raises GeneratorExit": ("def add(a, b): raise GeneratorExit", ADD),
    "a call raises StopIteration": ("def add(a, b): raise StopIteration", ADD),
    "at exit": ("import atexit, os\natexit.register(lambda: os.write(1, b'passed'))", ADD),
    "everything is killed": ("import os, signal\ndef add(a, b): os.kill(-1, 9)", ADD),
    "the parent is killed": ("import os, signal\nos.kill(os.getppid(), 9)\nos.kill(1, 9)", ADD),
    "the group is killed": ("import os, signal\ndef add(a, b): os.killpg(0, 9)", ADD),
    "an object equal to all": (SAYS_YES + "def add(a, b): return Yes()", ADD),
    "an object equal to all, on the right": (SAYS_YES + "def add(a, b): return Yes()", "assert 5 == add(2, 3)"),
    "an object unequal to none": (SAYS_YES + "def add(a, b): return Yes()", "assert not add(2, 3) != 5"),
    "an object that contains all": (SAYS_YES + "def add(a, b): return Yes()", "assert 5 in add(2, 3)"),
    "an object greater than all": (SAYS_YES + "def add(a, b): return Yes()", "assert 4 < add(2, 3) < 6"),
    "an int equal to all": ("class Int(int):\n    def __eq__(self, other): return True\ndef add(a, b): return Int(7)", ADD),
    "a str equal to all": ("class Str(str):\n    def __eq__(self, o): return True\ndef add(a, b): return Str('x')", "assert add(2, 3) == '5'"),
    "a list equal to all": ("class List(list):\n    def __eq__(self, o): return True\ndef add(a, b): return List()", "assert add(2, 3) == [5]"),
    "a dict equal to all": ("class Dict(dict):\n    def __eq__(self, o): return True\ndef add(a, b): return Dict()", "assert add(2, 3) == {5: 5}"),
    "a float equal to all": (
        "class Float(float):\n    def __eq__(self, o): return True\n    def __sub__(self, o): return 0.0\ndef add(a, b): return Float(1)",
        "assert abs(add(2, 3) - 5) < 1e-6",
    ),
    "an object without difference": (CALM + "def add(a, b): return Calm()", "assert abs(add(2, 3) - 5) < 1e-6"),
    "an object without difference, on the right": (CALM + "def add(a, b): return Calm()", "assert abs(5 - add(2, 3)) < 1e-6"),
    "an object that is less": (CALM + "def add(a, b): return Calm()", "assert add(2, 3) <= -5"),
    "an object that says how it starts": (
        "class S:\n    def startswith(self, x): return True\n    endswith = startswith\ndef add(a, b): return S()",
        "assert add(2, 3).startswith('five')",
    ),
    "a class that lies": ("class E:\n    __class__ = int\n    def __eq__(self, o): return True\ndef add(a, b): return E()", ADD),
    "a metaclass equal to all": (
        "class M(type):\n    def __eq__(self, o): return True\n    def __hash__(self): return 1\nclass E(metaclass=M): pass\ndef add(a, b): return E",
        ADD,
    ),
    "a future value": (
        "class Later:\n    def __index__(self): return 5\n    __int__ = __index__\n    def __hash__(self): return 5\n"
        "    def __eq__(self, o): return True\ndef add(a, b): return Later()",
        "assert {add(2, 3): 1} == {5: 1}",
    ),
    "builtins with other meanings": ("abs = len = int = float = round = lambda *a: 0\ndef add(a, b): return 99", "assert abs(add(2, 3) - 5) < 1"),
    "all and any with other meanings": (
        "all = any = isinstance = bool = lambda *a: True\ndef add(a, b): return 0",
        "assert all(add(a, 1) == a + 1 for a in range(3))",
    ),
    "range without numbers": ("range = lambda *a: []\nadd = None", "for a in range(3):\n    assert add(a, 1) == a + 1"),
    "range without numbers, in builtins": (
        "import builtins\nbuiltins.range = lambda *a: []\nadd = print",
        "for a in range(3):\n    assert add(a, 1) == a + 1",
    ),
    "another math": ("import math\nmath.sqrt = lambda x: 7\ndef root(x): return 7", "import math\nassert root(4) == math.sqrt(4)"),
    "another math that the test has not imported": ("import math\nmath.sqrt = lambda x: 7\ndef root(x): return 7", "assert root(4) == math.sqrt(4)"),
    "a module of its own by the name of math": (
        "import sys, types\nmath = types.ModuleType('math')\nmath.sqrt = lambda x: 7\nsys.modules['math'] = math\ndef root(x): return 7",
        "assert root(4) == math.sqrt(4)",
    ),
    "a class by the name of math": ("class math:\n    sqrt = lambda x: 7\ndef root(x): return 7", "assert root(4) == math.sqrt(4)"),
    "the argument is emptied": (
        "def sort(data):\n    data.clear()\n    return []",
        "data = [3, 1, 2]\nassert sort(data) == sorted(data)",
    ),
    "the argument is filled": (
        "def double(data):\n    while data: data.pop()\n    return []",
        "data = [3, 1, 2]\nassert double(data) == [2 * x for x in data]",
    ),
    "json is replaced": ("import json\njson.dumps = lambda *a, **k: '[1, \"value\", 5, []]'\njson.loads = lambda *a: 5\ndef add(a, b): return 0", ADD),
    "replies are sent before they are asked for": (
        "import json, os\nfor fd in range(3, 16):\n    for n in range(9):\n        text = json.dumps([n, 'value', True, []]).encode()\n"
        "        try: os.write(fd, b'%08x' % len(text) + text)\n        except OSError: pass",
        ADD,
    ),
    "readiness is forged, and then nothing": (
        "import json, os, time\ntext = json.dumps(['ready', {}]).encode()\nfor fd in range(3, 16):\n"
        "    try: os.write(fd, b'%08x' % len(text) + text)\n    except OSError: pass\nos._exit(0)",
        ADD,
    ),
    "a message without an end": ("import os\nfor fd in range(3, 16):\n    try: os.write(fd, b'01ffffff')\n    except OSError: pass\nos._exit(0)", ADD),
    "a message of depth": (
        "import json, os\ntext = b'[' * 100000\nfor fd in range(3, 16):\n    try: os.write(fd, b'%08x' % len(text) + text)\n"
        "    except OSError: pass\nimport time; time.sleep(1)",
        ADD,
    ),
    "a value of 64 MB": ("def add(a, b): return 'x' * (64 << 20)", ADD),
    "a value that holds itself": ("def add(a, b):\n    loop = []\n    loop.append(loop)\n    return loop", ADD),
    "not a number": ("def add(a, b): return float('nan')", ADD),
    "true": ("def add(a, b): return True", ADD),
    "nothing": ("", ADD),
    "never ready": ("while True: pass", ADD),
    "never answers": ("import time\ndef add(a, b): time.sleep(60)", ADD),
    "counts until it is right": ("def add(a, b):\n    n = 10\n    while True:\n        yield n\n        n += 1", "assert 5 in add(2, 3)"),
    "tracing": (
        "import sys\ndef trace(frame, event, arg):\n    frame.f_locals['found'] = True\n    return trace\n"
        "sys.settrace(trace)\nsys.setprofile(trace)\ndef add(a, b): return 0",
        ADD,
    ),
    "the test's name for the program": ("import sys, types\nsys.modules['program'] = types.SimpleNamespace(add=lambda a, b: 5)", "import program\n" + ADD),
    "objects in memory": (
        "import gc\nfor one in gc.get_objects():\n    if isinstance(one, dict) and 'tests' in one:\n        one['tests'] = 'pass'\n"
        "def add(a, b): return 0",
        ADD,
    ),
    "a test's function is called back with what it cannot know": (
        "def apply(f, x):\n    return f",
        "assert apply(lambda x: x + 1, 2) == 3",
    ),
    "attributes of a test's function": (
        "def apply(f, x):\n    try: return f.__globals__\n    except AttributeError: return getattr(f, 'secret', 0)",
        "def secret(x): return 12345\nassert apply(secret, 2) == 12345",
    ),
    "the exception that a test expects, of another kind": (
        "class ValueError(Exception): pass\ndef add(a, b): raise ValueError('no')",
        "try:\n    add(2, 'x')\nexcept TypeError:\n    pass",
    ),
    "a test that asks nothing of the program": ("", "assert True"),
    "an object in a list of what is right": (SAYS_YES + "def add(a, b): return Yes()", "assert add(2, 3) in [4, 5, 6]"),
    "an object that is never the largest": (CALM + "def add(a, b): return Calm()", "assert max(add(2, 3), 5) == 5"),
    "an object that adds to what is right": (
        SAYS_YES + "Yes.__radd__ = Yes.__add__ = lambda self, other: 5\ndef add(a, b): return Yes()",
        "assert sum([add(2, 3)]) == 5 and add(2, 3) + 0 == 5",
    ),
    "an error of the program's that is the tests' own": (
        "class Mine(AssertionError): pass\ndef add(a, b): return 0",
        "try:\n    assert add(2, 3) == 5\nexcept Mine:\n    pass",
    ),
    "a number of ten million digits": ("def add(a, b): return 10 ** 10_000_000", ADD),
    "a list a million deep": ("def add(a, b):\n    x = []\n    for _ in range(1_000_000): x = [x]\n    return x", ADD),
    "answers before they are asked for": (
        "import json, os\nfor fd in range(64):\n    for n in range(1, 5):\n        text = json.dumps([n, 'value', True, []]).encode()\n"
        "        try: os.write(fd, b'%08x' % len(text) + text)\n        except OSError: pass\nadd = None",
        ADD,
    ),
    "a verdict on the wire": (
        "import os\nfor fd in range(64):\n    for word in (b'passed', b'00000008\"passed\"'):\n        try: os.write(fd, word)\n"
        "        except OSError: pass\ndef add(a, b): return 5",
        "assert add(2, 3) == 6",
    ),
    "StopIteration ends a map of the tests": (
        "def add(a, b): raise StopIteration", "assert all(map(lambda a: add(a, 1) == a + 1, range(3)))"
    ),
    "a class by the name of StopIteration": (
        "class StopIteration(Exception): pass\ndef add(a, b): raise StopIteration",
        "import itertools\nassert not any(itertools.starmap(lambda a, b: add(a, b) != a + b, [(1, 2), (3, 4)]))",
    ),
    "a length that ends a map of the tests": (
        "class L:\n    def __len__(self): raise StopIteration\n    __getitem__ = v = property(__len__)\ndef add(a, b): return L()",
        "assert all(map(lambda a: len(add(a, 1)) == 7, range(3)))",
    ),
    "an item that ends a map of the tests": (
        "class L:\n    def __getitem__(self, i): raise StopIteration\ndef add(a, b): return L()",
        "assert all(map(lambda a: add(a, 1)[0] == 7, range(3)))",
    ),
    "an attribute that ends a map of the tests": (
        "class L:\n    @property\n    def v(self): raise StopIteration\ndef add(a, b): return L()",
        "assert all(map(lambda a: add(a, 1).v == 7, range(3)))",
    ),
    "an assertion within a function of the tests is swallowed": (
        "def walk(xs, visit):\n    try: visit(99)\n    except BaseException: pass",
        "def visit(x):\n    assert x < 5\nwalk([1, 2], visit)",
    ),
    "the tests' own names, by a forged list": (
        FORGE + "forge(['ready', {'__name__': 'value', '__builtins__': 'value'}], [1, 'value', 'x', []])",
        "__builtins__\nif __name__ == '__main__':\n    assert add(2, 3) == 5",
    ),
    "a function that is an exception": ("class add(Exception):\n    def __eq__(self, other): return True", ADD),
    "an exception of no kind, by a forged list": (FORGE + "forge(['ready', {'add': 'exception:SystemExit'}])", ADD),
    "lists put back where none were given": (
        FORGE + "forge(['ready', {'sort': 'value'}], [1, 'value', {'h': 0}, []], [2, 'value', None, [[0, []], [-1, [1]], [7, []]]])",
        "data = [3, 1]\nassert sort(data) == [1, 3]",
    ),
    "calls back without having been asked": (
        FORGE + "forge(['ready', {'add': 'value'}], ['callback'], ['callback', -1, [5], {'dict': []}], [1, 'value', True, []])",
        "try:\n    assert add(2, 3) == 5\nexcept TypeError:\n    pass",
    ),
    "halves of replies": (
        FORGE + "forge(['ready', {'add': 'value'}], [1, 'value'], [1, 'error'], {'a': 1})",
        "try:\n    assert add(2, 3) == 5\nexcept Exception:\n    pass",
    ),
    "half of nothing": (FORGE + "forge(['ready', {'add': 'value'}], [1, 'value', {'h': 0}, []], [2, 'value', {'Fraction': '0/0'}, []])", ADD),
    "threads that answer beside": (
        FORGE + "import threading\nthreading.Thread(target=lambda: [forge([2, 'value', 5, []]) for _ in range(99)], daemon=True).start()\n"
        "def add(a, b): return 0",
        "assert add(2, 3) == 5 and add(10, 20) == 30",
    ),
    "two processes that answer": ("import os\nos.fork()\ndef add(a, b): return 4", ADD),
    "a program that stops itself": ("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", ADD),
    "calls without an end in both": ("import sys\nsys.setrecursionlimit(10**6)\ndef call(f): return f(lambda: call(f))", "assert call(lambda g: g()) == 1"),
    "an error's text of 16 MB": ("def add(a, b): raise ValueError('x' * (1 << 24))", "try: found = add(2, 3)\nexcept ValueError as e: found = str(e)\nassert found == 5"),
    "half of a character": ("def add(a, b): return chr(0xd800)", ADD),
    "a set that holds what is equal to all": (
        "class O:\n    def __hash__(self): return hash(5)\n    def __eq__(self, o): return True\ndef add(a, b): return {O()}",
        "assert add(2, 3) == {5} or add(2, 3) <= {5}",
    ),
    "a key that is equal to all": (
        "class K(str):\n    def __eq__(self, o): return True\n    def __hash__(self): return hash('a')\ndef add(a, b): return {K('b'): 5}",
        "assert add(2, 3) == {'a': 5}",
    ),
    "a format of its own": ("class F:\n    def __format__(self, s): return '5.00'\ndef add(a, b): return F()", "assert f'{add(2, 3):.2f}' == '5.00'"),
    "an index of nothing": ("class I:\n    def __index__(self): return 0\ndef add(a, b): return I()", "assert list(range(add(2, 3))) == list(range(5))"),
    "a truth that changes": (
        "class B:\n    n = 0\n    def __bool__(self):\n        B.n += 1\n        return B.n % 2 == 1\ndef ok(x): return B()",
        "assert ok(1) and not ok(2) and ok(3) is True",
    ),
    "the difference to what is right": ("class S:\n    def difference(self, other): return set()\ndef f(): return S()", "assert f().difference({1, 2}) == set()"),
    "what is right, intersected": ("class S:\n    def intersection(self, other): return other\ndef f(): return S()", "assert f().intersection({1, 2}) == {1, 2}"),
    "what is right, united": ("class S:\n    def union(self, other): return other\ndef f(): return S()", "assert f().union({1, 2}) == {1, 2}"),
    "code in the text of an error": ("def add(a, b): raise type('__import__(\"os\")._exit(0)', (Exception,), {})('x')", ADD),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _whole() -> None:
    if lacking():
        pytest.skip(f"this system gives no whole sandbox: {lacking()}")


@pytest.mark.parametrize("name", HACKS)
def test_a_program_that_does_not_pass_earns_nothing(name: str) -> None:
    assert not passes(*HACKS[name], wall_s=3)


HONEST: dict[str, tuple[str, str]] = {
    "plain": ("def add(a, b): return a + b", ADD),
    "a function as argument": ("def apply(f, x): return [f(y) for y in x]", "assert apply(lambda x: x + 1, [1, 2]) == [2, 3]"),
    "in place": ("def sort(x): x.sort()", "data = [3, 1, 2]\nsort(data)\nassert data == [1, 2, 3]"),
    "in place, a matrix": ("def turn(m): m[:] = [list(r) for r in zip(*m)]", "m = [[1, 2], [3, 4]]\nturn(m)\nassert m == [[1, 3], [2, 4]]"),
    "a class": (
        "class Stack:\n    def __init__(self): self.x = []\n    def push(self, v): self.x.append(v)\n    def pop(self): return self.x.pop()\n    def __len__(self): return len(self.x)",
        "s = Stack()\ns.push(1)\ns.push('b')\nassert len(s) == 2 and s.pop() == 'b' and s.x == [1]\nassert isinstance(s, Stack)",
    ),
    "a class with operators": (
        "class V:\n    def __init__(self, x): self.x = x\n    def __add__(self, o): return V(self.x + o.x)\n    def __eq__(self, o): return self.x == o.x",
        "assert V(1) + V(2) == V(3)\nassert (V(1) + V(2)).x == 3",
    ),
    "a generator": ("def count(n):\n    for i in range(n): yield i", "assert list(count(3)) == [0, 1, 2]\nassert sum(count(4)) == 6\nassert 2 in count(3)"),
    "an expected error": (
        "def root(x):\n    if x < 0: raise ValueError('negative')\n    return x ** 0.5",
        "try:\n    root(-1)\nexcept ValueError as e:\n    assert 'negative' in str(e)\nelse:\n    assert False\nassert abs(root(4) - 2) < 1e-9",
    ),
    "an error of its own": (
        "class Empty(Exception): pass\ndef first(x):\n    if not x: raise Empty('none')\n    return x[0]",
        "try:\n    first([])\nexcept Empty:\n    pass\nelse:\n    assert False",
    ),
    "values of all kinds": (
        "from decimal import Decimal\nfrom fractions import Fraction\nfrom collections import Counter, deque, OrderedDict\n"
        "def same(x): return x\ndef many(): return Counter('aab'), deque([1]), OrderedDict(a=1), Decimal('1.5'), Fraction(1, 3), {1, 2}, frozenset({3}), 1j, b'x', range(3)",
        "from decimal import Decimal\nfrom fractions import Fraction\nfrom collections import deque\n"
        "for x in (None, True, 2 ** 200, -1.5, float('inf'), 'ä\\ud800', b'\\xff', (1, [2, {3: (4,)}]), {1, 2}, {(1, 2): [3]}):\n    assert same(x) == x and type(same(x)) is type(x)\n"
        "assert many() == ({'a': 2, 'b': 1}, deque([1]), {'a': 1}, Decimal('1.5'), Fraction(1, 3), {1, 2}, frozenset({3}), 1j, b'x', range(3))",
    ),
    "HumanEval's form": ("def f(x): return x * 2", "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate('a') == 'aa'\ncheck(f)"),
    "a name of a builtin, imported": ("def sum(a, b): return a + b", "from program import sum\nassert sum(1, 2) == 3"),
    "a main part": ("def f(): return 1\nif __name__ == '__main__':\n    print(f())", "assert f() == 1"),
    "prints and reads": ("import sys\nprint('hello', file=sys.stderr)\nprint('x' * 100000)\ndef f():\n    print('again')\n    return sys.stdin.read()", "assert f() == ''"),
    "a global value": ("PRIMES = [2, 3, 5]", "assert PRIMES == [2, 3, 5]"),
    "dataclasses and modules": (
        "from dataclasses import dataclass\nimport re, math, itertools, heapq, bisect, functools, string, random, datetime\n@dataclass\nclass P:\n    x: int = 1\n"
        "@functools.lru_cache\ndef fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)",
        "assert fib(50) == 12586269025 and P(3).x == 3 and P(3) == P(3)",
    ),
    "a thread": ("import threading\ndef f():\n    out = []\n    t = threading.Thread(target=out.append, args=(1,))\n    t.start()\n    t.join()\n    return out", "assert f() == [1]"),
    "sets of its own": (
        "class Bag:\n    def __init__(self, *of): self.of = set(of)\n    def union(self, *bags): return Bag(*self.of, *(one for bag in bags for one in bag.of))",
        "assert Bag(1).union(Bag(2), Bag(3)).of == {1, 2, 3}",
    ),
    "a callback that raises": (
        "def safe(f):\n    try: return f()\n    except ZeroDivisionError: return 'caught'",
        "assert safe(lambda: 1 / 0) == 'caught'",
    ),
    "a callback that calls back": ("def twice(f, x): return f(f(x))\ndef inc(x): return x + 1", "assert twice(lambda x: inc(x) * 2, 1) == 10"),
}  # fmt: skip


@pytest.mark.parametrize("name", HONEST)
def test_a_program_that_passes_earns_its_reward(name: str) -> None:
    assert passes(*HONEST[name])
