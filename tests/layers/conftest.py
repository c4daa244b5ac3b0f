from tests.support.backends import each_backend

__all__ = ["each_backend"]
