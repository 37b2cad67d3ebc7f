# SPDX-License-Identifier: MIT
"""`python -m rnx`."""

from rnx.entry import main

if __name__ == "__main__":
    main()
