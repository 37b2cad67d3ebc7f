# SPDX-License-Identifier: MIT
"""The one error of the bench: something did not do what is measured."""


class Broken(Exception):
    """A sentence for the row in which the figure would stand."""
