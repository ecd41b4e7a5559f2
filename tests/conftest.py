"""Assertions in tests/support report their values as those in tests do."""

import pytest

pytest.register_assert_rewrite("support")
