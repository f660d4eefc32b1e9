"""What the device says of itself: status and state, both retained."""

import json

from agent import __version__


async def test_a_device_that_is_up_says_so_with_its_boot_id_and_version(
    serve, configure, program, connect
):
    await serve(configure())
    birth = await program.status("online")
    assert birth["version"] == __version__
    assert len(birth["boot_id"]) == 36
    # One who comes later is told the same.
    later = await connect()
    assert (await later.message("status")).retain
    assert await later.status("online") == birth


async def test_the_state_is_retained_and_has_the_readings_and_the_estimates(
    serve, configure, program, connect, digits, cloud, tmp_path
):
    supply = tmp_path / "sys/class/power_supply/BAT0"
    supply.mkdir(parents=True)
    for name, text in {"type": "Battery", "capacity": "42", "status": "Discharging"}.items():
        (supply / name).write_text(f"{text}\n")
    device = {"sysfs_root": str(tmp_path / "sys"), "state_interval_s": 0.05}
    serving = await serve(configure(cloud=cloud, device=device))
    await program.submit("digits", digits.job("known", placement="only_cloud"))
    await program.answer("known")
    seen = len(program.on("state"))
    later = await connect()
    assert (await later.message("state")).retain
    # The second from now was made after the answer, and surely after the first reading.
    state = json.loads((await program.message("state", seen + 2)).payload)
    assert state["time"] > 0
    assert state["policy"] == "prefer-local"
    assert state["device"]["battery_charge_ratio"] == 0.42
    assert state["device"]["battery_discharging"] is True
    assert state["device"]["network_up"] is True
    assert state["endpoints"]["lab"]["reachable"] is True
    assert state["endpoints"]["lab"]["rtt_s"] > 0
    assert state["routes"]["local"] == {"waiting": 0, "running": 0}
    routes = state["models"]["digits"]["routes"]
    assert routes["cloud:lab"]["samples"] == 1
    assert routes["local"]["latency_mean_s"] > 0
    assert state["models"]["points"]["inputs"] == [
        {"name": "point", "datatype": "FP32", "shape": [1, 2]}
    ]
    assert await serving.metric("edgewise_battery_charge_ratio") == 0.42
    assert await serving.metric("edgewise_battery_discharging") == 1
    assert await serving.metric("edgewise_network_up") == 1
    assert await serving.metric("edgewise_network_rtt_seconds", endpoint="lab") > 0


async def test_a_sensor_that_the_device_lacks_has_no_series(serve, configure, tmp_path):
    serving = await serve(configure(device={"sysfs_root": str(tmp_path)}))
    _, text, _ = await serving.get("/metrics")
    series = [line for line in text.splitlines() if not line.startswith("#")]
    assert not [line for line in series if "battery" in line or "network_up" in line]
