"""How does the floor get into a browser? A page and a stream of changes, on this computer only."""
from fabtap.floor import Floor


async def serve_floor(floor: Floor, lab_name: str, port: int) -> None:
    """Serve the floor page on 127.0.0.1 until cancelled."""
