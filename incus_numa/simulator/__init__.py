"""An Incus API in process over fake /sys, /proc and cgroup trees, bad habits included: demo and tests run on it."""
