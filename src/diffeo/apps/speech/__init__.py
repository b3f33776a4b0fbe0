"""Speech: corpora, spectrograms, voices that speak and align."""

from diffeo.apps.speech.alignment import forced_alignment as forced_alignment
from diffeo.apps.speech.audio import Mel as Mel
from diffeo.apps.speech.audio import from_mel as from_mel
from diffeo.apps.speech.audio import read_audio as read_audio
from diffeo.apps.speech.audio import to_mel as to_mel
from diffeo.apps.speech.audio import write_audio as write_audio
from diffeo.apps.speech.corpus import Clip as Clip
from diffeo.apps.speech.corpus import check_corpus as check_corpus
from diffeo.apps.speech.corpus import mels_of as mels_of
from diffeo.apps.speech.corpus import read_corpus as read_corpus
from diffeo.apps.speech.espeak import Utterance as Utterance
from diffeo.apps.speech.espeak import speak as speak
from diffeo.apps.speech.text import encode_text as encode_text
from diffeo.apps.speech.text import symbols_of as symbols_of
from diffeo.apps.speech.text import units_of as units_of
from diffeo.apps.speech.vocoder import Sounds as Sounds
from diffeo.apps.speech.vocoder import Vocoder as Vocoder
from diffeo.apps.speech.vocoder import multiple_of as multiple_of
from diffeo.apps.speech.vocoder import vocode as vocode
from diffeo.apps.speech.voice import Spoken as Spoken
from diffeo.apps.speech.voice import Voice as Voice
from diffeo.apps.speech.voice import align as align
from diffeo.apps.speech.voice import durations_of as durations_of
from diffeo.apps.speech.voice import join as join
from diffeo.apps.speech.voice import say as say
from diffeo.apps.speech.voice import style_of as style_of
