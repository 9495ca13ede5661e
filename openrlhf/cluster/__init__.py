"""Ray, and nothing else that knows Ray."""

import os

# A Ray that this process starts itself must listen on loopback only: its ports accept work from whoever reaches them.
# Ray reads this switch when it is imported; it is named after the systems where loopback is the default. A process that
# joins a cluster (RAY_ADDRESS) keeps the cluster's own addresses.
if "RAY_ADDRESS" not in os.environ:
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
