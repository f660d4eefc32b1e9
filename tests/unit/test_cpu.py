"""The processor's readings, from trees as the kernel lays them out."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.sensors.cpu import Cpu, CpuReading

DAEMON, WORKER = 812, 813


class Machine:
    """A /sys and a /proc whose times move when told; a hundred ticks a second."""

    def __init__(self, root, clock):
        self.sysfs, self.procfs = root / "sys", root / "proc"
        self.clock = clock
        self.pids = [DAEMON]
        self._times = [0] * 10
        self._own = {}
        for path in (self.sysfs, self.procfs):
            path.mkdir(exist_ok=True)

    def sensor(self, own_pids=None):
        return Cpu(self.sysfs, self.procfs, own_pids or (lambda: self.pids), clock=self.clock)

    def put(self, path, content):
        file = path if path.is_absolute() else self.procfs / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else f"{content}\n".encode())

    def policy(self, number, **files):
        for name, content in files.items():
            self.put(self.sysfs / f"devices/system/cpu/cpufreq/policy{number}" / name, content)

    def spend(self, *, seconds=1.0, **ticks):
        """Let time pass, in which the processor spends so many ticks in each state."""
        names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest")
        for name, spent in ticks.items():
            self._times[names.index(name)] += spent
        self.clock.advance(seconds)
        line = " ".join(str(value) for value in self._times)
        self.put(self.procfs / "stat", f"cpu  {line}\ncpu0 {line}\ncpu1 {line}\nintr 1 2 3")

    def run(self, pid=DAEMON, *, utime=0, stime=0, started=100, name="edgewise"):
        """Have a process of ours take so many ticks."""
        before = self._own.get((pid, started), (0, 0))
        self._own[pid, started] = user, system = before[0] + utime, before[1] + stime
        fields = f"S 1 1 1 0 -1 0 9 0 0 0 {user} {system} 0 0 20 0 9 0 {started} 812 18"
        self.put(self.procfs / str(pid) / "stat", f"{pid} ({name}) {fields}")


@pytest.fixture
def machine(tmp_path, clock):
    machine = Machine(tmp_path, clock)
    machine.spend(idle=1000)
    machine.run(utime=500)
    return machine


def test_a_device_that_tells_nothing_reads_none(tmp_path, clock):
    cpu = Machine(tmp_path, clock).sensor()
    assert cpu.read() == CpuReading()
    assert cpu.read() == CpuReading()


def test_the_first_reading_has_no_utilisation(machine):
    cpu = machine.sensor()
    reading = cpu.read()
    assert reading.utilization_ratio is None
    assert reading.contention_ratio is None
    assert cpu.read().utilization_ratio is None  # no time has passed


@pytest.mark.parametrize(
    ("ticks", "utilization"),
    [
        ({"idle": 200}, 0.0),
        ({"idle": 100, "iowait": 100}, 0.0),
        ({"user": 50, "idle": 150}, 0.25),
        ({"user": 50, "guest": 50, "idle": 150}, 0.25),  # counted once
        ({"nice": 50, "system": 20, "irq": 5, "softirq": 5, "steal": 20, "idle": 100}, 0.5),
        ({"user": 200}, 1.0),
    ],
)
def test_utilisation_is_the_busy_share_since_the_last_reading(machine, ticks, utilization):
    cpu = machine.sensor()
    cpu.read()
    machine.spend(**ticks)
    assert cpu.read().utilization_ratio == utilization


def test_iowait_that_falls_is_no_time(machine):
    machine.spend(iowait=100)
    cpu = machine.sensor()
    cpu.read()
    machine.spend(user=50, idle=50, iowait=-20)
    assert cpu.read().utilization_ratio == 0.5


def test_contention_is_what_others_take_of_what_we_leave(machine):
    cpu = machine.sensor()
    cpu.read()
    machine.spend(user=120, steal=30, idle=50)
    machine.run(utime=60, stime=40)
    reading = cpu.read()
    assert reading.utilization_ratio == 0.75
    assert reading.contention_ratio == (150 - 100) / (200 - 100)


def test_our_own_load_is_no_contention(machine):
    cpu = machine.sensor()
    cpu.read()
    machine.spend(user=200)
    machine.run(utime=203)
    assert cpu.read().contention_ratio == 0.0
    machine.spend(user=100, idle=100)
    machine.run(utime=101)
    assert cpu.read().contention_ratio == 0.0


def test_a_worker_counts_as_ours_whatever_its_name(machine):
    cpu = machine.sensor()
    cpu.read()
    machine.pids.append(WORKER)
    machine.run(WORKER, utime=100, name="a) (b c) 1 2")
    machine.spend(user=100, idle=100)
    assert cpu.read().contention_ratio == 0.0


def test_contention_is_unknown_while_a_process_of_ours_has_ended(machine):
    machine.pids.append(WORKER)
    machine.run(WORKER, utime=70)
    cpu = machine.sensor()
    cpu.read()
    machine.spend(user=100, idle=100)
    machine.run(WORKER, utime=10, started=101)  # another one of the same number
    reading = cpu.read()
    assert reading.contention_ratio is None
    assert reading.utilization_ratio == 0.5
    machine.spend(user=100, idle=100)
    machine.run(WORKER, utime=100, started=101)
    assert cpu.read().contention_ratio == 0.0


@pytest.mark.parametrize("stat", [None, b"", b"812 (edgewise", b"812 (e) S 1", b"\xff" * 300])
def test_contention_is_unknown_while_a_process_of_ours_can_not_be_read(machine, stat):
    cpu = machine.sensor()
    cpu.read()
    machine.spend(user=100, idle=100)
    if stat is None:
        (machine.procfs / f"{DAEMON}/stat").unlink()
    else:
        machine.put(machine.procfs / f"{DAEMON}/stat", stat)
    reading = cpu.read()
    assert reading.contention_ratio is None
    assert reading.utilization_ratio == 0.5


def test_a_mean_over_a_long_sleep_tells_nothing_of_now(machine):
    cpu = machine.sensor()
    cpu.read()
    machine.spend(seconds=31, user=3000)
    assert cpu.read().utilization_ratio is None
    machine.spend(user=50, idle=150)
    assert cpu.read().utilization_ratio == 0.25


def test_a_stat_that_vanishes_begins_anew(machine):
    cpu = machine.sensor()
    cpu.read()
    (machine.procfs / "stat").unlink()
    assert cpu.read().utilization_ratio is None
    machine.spend(user=100)
    assert cpu.read().utilization_ratio is None
    machine.spend(user=50, idle=150)
    assert cpu.read().utilization_ratio == 0.25


def test_two_devices_are_read_apart(tmp_path, clock):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    a, b = Machine(tmp_path / "a", clock), Machine(tmp_path / "b", clock)
    a.spend(idle=1)
    b.spend(idle=1)
    readers = a.sensor(), b.sensor()
    for reader in readers:
        reader.read()
    a.spend(user=100)
    b.spend(idle=100)
    assert [reader.read().utilization_ratio for reader in readers] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("online", "cores"), [("0", 1), ("0-3", 4), ("0-1,4,6-7", 5), (None, 2), ("", 2), ("all", 2)]
)
def test_load_is_per_core(machine, online, cores):
    machine.put(machine.procfs / "loadavg", "6.00 0.65 0.52 2/180 2211")
    if online is not None:
        machine.put(machine.sysfs / "devices/system/cpu/online", online)
    assert machine.sensor().read().load_ratio == 6 / cores


@pytest.mark.parametrize("loadavg", ["", "nan 0 0", "-1 0 0", "lots"])
def test_a_useless_load_is_none(machine, loadavg):
    machine.put(machine.procfs / "loadavg", loadavg)
    assert machine.sensor().read().load_ratio is None


@pytest.mark.parametrize(
    ("line", "ratio"),
    [
        ("some avg10=12.50 avg60=0.84 avg300=0.31 total=58761459", 0.125),
        ("some avg10=100.00 avg60=0.84 avg300=0.31 total=58761459", 1.0),
        ("some avg10=101.00 avg60=0.84 avg300=0.31 total=58761459", None),
        ("some avg10=1.2.3 avg60=0.84", None),
        ("full avg10=1.00 avg60=0.84", None),
        ("", None),
    ],
)
def test_pressure_is_the_share_of_ten_seconds(machine, line, ratio):
    machine.put(machine.procfs / "pressure/cpu", line)
    assert machine.sensor().read().pressure_ratio == ratio


@pytest.mark.parametrize(
    ("line", "size"),
    [
        ("MemAvailable:    3318420 kB", 3318420 * 1024.0),
        ("MemAvailable:    0 kB", 0.0),
        ("MemAvailable:    lots kB", None),
        ("MemAvailable:    " + "9" * 308 + " kB", None),
        ("MemFree: 1 kB", None),
    ],
)
def test_memory_is_in_bytes(machine, line, size):
    machine.put(machine.procfs / "meminfo", f"MemTotal: 3884360 kB\n{line}\nBuffers: 1 kB")
    assert machine.sensor().read().memory_available_bytes == size


def test_frequency_is_the_mean_over_cores_that_are_online(machine):
    machine.policy(0, scaling_cur_freq=600, cpuinfo_max_freq=1200, affected_cpus="0 1 2")
    machine.policy(4, scaling_cur_freq=2010, cpuinfo_max_freq=2000, affected_cpus="4")
    machine.policy(5, scaling_cur_freq=10, cpuinfo_max_freq=2000, affected_cpus="")
    assert machine.sensor().read().frequency_ratio == (3 * 0.5 + 1.0) / 4


def test_frequency_is_read_from_cores_where_the_kernel_lists_no_policies(machine):
    cpus = machine.sysfs / "devices/system/cpu"
    for core, (now, online) in enumerate([(600, None), (1200, 1), (50, 0)]):
        machine.put(cpus / f"cpu{core}/cpufreq/scaling_cur_freq", now)
        machine.put(cpus / f"cpu{core}/cpufreq/cpuinfo_max_freq", 1200)
        if online is not None:
            machine.put(cpus / f"cpu{core}/online", online)
    machine.put(cpus / "cpuidle/current_driver", "psci_idle")
    assert machine.sensor().read().frequency_ratio == 0.75


@pytest.mark.parametrize(("now", "most"), [(0, 10), (-5, 10), (5, 0), (5, -5), (50, 10), ("x", 5)])
def test_an_implausible_frequency_is_none(machine, now, most):
    machine.policy(0, scaling_cur_freq=now, cpuinfo_max_freq=most)
    assert machine.sensor().read().frequency_ratio is None
    machine.policy(1, scaling_cur_freq=5, cpuinfo_max_freq=10)
    assert machine.sensor().read().frequency_ratio == 0.5


numbers = st.lists(st.integers(-2, 10**30), max_size=12).map(
    lambda values: " ".join(map(str, values)).encode()
)
content = (
    st.binary(max_size=30)
    | numbers
    | numbers.map(lambda values: b"cpu  " + values)
    | numbers.map(lambda values: b"1 (x) S " + values + b" " + values)
    | st.floats().map(lambda value: f"some avg10={value} ".encode())
    | st.integers().map(lambda value: f"MemAvailable: {value} kB\n".encode())
)
files = st.dictionaries(
    st.sampled_from(
        [
            *("proc/stat", "proc/1/stat", "proc/loadavg", "proc/meminfo", "proc/pressure/cpu"),
            *(f"sys/devices/system/cpu/{name}" for name in ("online", "cpu0/online")),
            *(
                f"sys/devices/system/cpu/cpufreq/policy0/{name}"
                for name in ("scaling_cur_freq", "cpuinfo_max_freq", "affected_cpus")
            ),
        ]
    ),
    content,
)


@given(st.lists(files, min_size=2, max_size=3))
def test_any_trees_read_in_range_or_none(tmp_path_factory, clock, trees):
    root = tmp_path_factory.mktemp("device")
    cpu = Cpu(root / "sys", root / "proc", lambda: [1], clock=clock)
    for tree in trees:
        for name, written in tree.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(written)
        clock.advance(1)
        seen = cpu.read()
        ratios = (
            *(seen.utilization_ratio, seen.contention_ratio),
            *(seen.pressure_ratio, seen.frequency_ratio),
        )
        assert all(ratio is None or 0 <= ratio <= 1 for ratio in ratios)
        for value in (seen.load_ratio, seen.memory_available_bytes):
            assert value is None or (math.isfinite(value) and value >= 0)
