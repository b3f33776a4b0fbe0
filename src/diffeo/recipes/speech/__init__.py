"""Flows of speech: spectrograms given text, and sound given spectrograms."""

from diffeo.recipes.speech.acoustic import flow_tts as flow_tts
from diffeo.recipes.speech.acoustic import flowtron as flowtron
from diffeo.recipes.speech.acoustic import glow_tts as glow_tts
from diffeo.recipes.speech.waveforms import parallel_wavenet as parallel_wavenet
from diffeo.recipes.speech.waveforms import waveflow as waveflow
from diffeo.recipes.speech.waveforms import waveglow as waveglow
from diffeo.recipes.speech.waveforms import wavenet as wavenet
