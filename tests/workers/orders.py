"""An order to train."""

from canvasbus_workers.retrain.launchers.protocol import Order

ORDER = Order(
    key="01a2/order",
    run_id="m/v7",
    model_name="m",
    model_version="v7",
    fence=7,
    episode_id="e1",
    reason="accuracy 0.5",
    windows=3,
    correlation_id="01a20000-0000-7000-8000-000000000000",
    traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ordered=0.0,
)
