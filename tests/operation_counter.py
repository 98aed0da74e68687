"""What a piece of code asks of torch."""

from collections import Counter

from torch.utils._python_dispatch import TorchDispatchMode


class Operations(TorchDispatchMode):
    """Counts operations by name while the context lasts, views left out: ``operations.of["addmm"]``."""

    def __init__(self):
        super().__init__()
        self.of = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view:
            self.of[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))
