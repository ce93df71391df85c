from pathlib import Path
TABLE = Path(__file__).with_name("gpu_libraries.toml")
