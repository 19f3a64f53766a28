"""Print what an installed package requires here, without the packages that are named after it."""

import sys
from importlib.metadata import requires

from packaging.requirements import Requirement

package, *without = sys.argv[1:]
for line in requires(package) or []:
    wanted = Requirement(line)
    if wanted.name in without or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
        continue
    wanted.marker = None
    print(wanted)
